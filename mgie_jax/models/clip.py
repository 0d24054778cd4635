"""The CLIP vision tower: transformers' `CLIPVisionModel`, parameter for parameter (arXiv 2103.00020).

Parameter names are those of transformers 4; version 5 writes the same names without the leading
`vision_model.`
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from mgie_jax.models.attention import dot_product_attention
from mgie_jax.models.common import remat
from mgie_jax.sharding import BATCH, constrain


def quick_gelu(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """x * sigmoid(1.702 x), the activation OpenAI trained CLIP with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": partial(nn.gelu, approximate=False)}


@dataclass(frozen=True)
class CLIPVisionConfig:
    """Sizes, named as in the Hugging Face config.json. `hidden_act` is "quick_gelu" or "gelu"."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    num_channels: int = 3
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.num_attention_heads} heads do not divide hidden size {self.hidden_size}")
        if self.image_size % self.patch_size:
            raise ValueError(f"patches of {self.patch_size} do not tile an image of {self.image_size}")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act {self.hidden_act!r} is not one of {list(ACTIVATIONS)}")

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


def layer_norm(config: CLIPVisionConfig, dtype: Dtype, name: str | None = None) -> nn.LayerNorm:
    """The layer norm that all of CLIP's parts share, statistics in float32."""
    # Two passes over x: a few CLIP channels are so large that E[x^2] - E[x]^2 loses digits.
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype, use_fast_variance=False, name=name)


class CLIPEmbeddings(nn.Module):
    config: CLIPVisionConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w c"]) -> Float[Array, "b tokens d"]:
        config = self.config
        expected = (config.image_size, config.image_size, config.num_channels)
        if pixels.shape[1:] != expected:
            raise ValueError(f"the vision tower takes images of {expected}, not {pixels.shape[1:]}")
        patch = (config.patch_size, config.patch_size)
        convolve = nn.Conv(
            config.hidden_size, patch, strides=patch, padding="VALID", use_bias=False, dtype=self.dtype,
            name="patch_embedding",
        )  # fmt: skip
        patches = convolve(pixels).reshape(pixels.shape[0], config.num_patches, config.hidden_size)
        token = self.param("class_embedding", nn.initializers.normal(0.02), (config.hidden_size,))
        token = jnp.broadcast_to(token.astype(self.dtype), (pixels.shape[0], 1, config.hidden_size))
        place = nn.Embed(config.num_patches + 1, config.hidden_size, dtype=self.dtype, name="position_embedding")
        return jnp.concatenate([token, patches], axis=1) + place(jnp.arange(config.num_patches + 1))


class CLIPAttention(nn.Module):
    config: CLIPVisionConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        dense = partial(nn.Dense, self.config.hidden_size, dtype=self.dtype)
        heads = (*x.shape[:-1], self.config.num_attention_heads, -1)
        q, k, v = (dense(name=name)(x).reshape(heads) for name in ("q_proj", "k_proj", "v_proj"))
        return dense(name="out_proj")(dot_product_attention(q, k, v).reshape(x.shape))


class CLIPMLP(nn.Module):
    config: CLIPVisionConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        x = nn.Dense(self.config.intermediate_size, dtype=self.dtype, name="fc1")(x)
        return nn.Dense(self.config.hidden_size, dtype=self.dtype, name="fc2")(ACTIVATIONS[self.config.hidden_act](x))


class CLIPLayer(nn.Module):
    """One pre-norm transformer layer, as the body of a scan."""

    config: CLIPVisionConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> tuple[Float[Array, "b l d"], None]:
        norm = partial(layer_norm, self.config, self.dtype)
        x = x + CLIPAttention(self.config, self.dtype, name="self_attn")(norm(name="layer_norm1")(x))
        x = x + CLIPMLP(self.config, self.dtype, name="mlp")(norm(name="layer_norm2")(x))
        return constrain(x, BATCH), None


class CLIPEncoder(nn.Module):
    """The layers, stacked under `layers` or, without `scan_layers`, apart; a call runs the first `depth` of them."""

    config: CLIPVisionConfig
    dtype: Dtype = jnp.float32
    remat: str = "none"
    scan_layers: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], depth: int) -> Float[Array, "b l d"]:
        if not self.scan_layers:
            layer, x = remat(CLIPLayer, self.remat), constrain(x, BATCH)
            for i in range(self.config.num_hidden_layers if self.is_initializing() else depth):
                x, _ = layer(self.config, self.dtype, name=f"layers_{i}")(x)
            return x
        if self.is_initializing():  # every layer gets parameters, also one that no call will run
            layers = nn.scan(
                CLIPLayer, variable_axes={"params": 0}, split_rngs={"params": True},
                length=self.config.num_hidden_layers,
            )  # fmt: skip
            return layers(self.config, self.dtype, name="layers")(x)[0]
        # nn.scan runs every layer that has parameters; indexing those runs fewer and copies no slice of them.
        stacked = self.variables["params"]["layers"]
        layer = remat(CLIPLayer, self.remat, scanned=True)(self.config, self.dtype, parent=None)

        def body(x, index):
            return layer.apply({"params": jax.tree.map(lambda leaf: leaf[index], stacked)}, x)

        return jax.lax.scan(body, constrain(x, BATCH), jnp.arange(depth))[0]


class CLIPVisionTransformer(nn.Module):
    config: CLIPVisionConfig
    dtype: Dtype = jnp.float32
    remat: str = "none"
    scan_layers: bool = True

    def setup(self):
        self.embeddings = CLIPEmbeddings(self.config, self.dtype)
        self.pre_layrnorm = layer_norm(self.config, self.dtype)  # transformers' spelling
        self.encoder = CLIPEncoder(self.config, self.dtype, self.remat, self.scan_layers)
        self.post_layernorm = layer_norm(self.config, self.dtype)

    def __call__(self, pixels: Float[Array, "b h w c"], depth: int) -> Float[Array, "b tokens d"]:
        hidden = self.encoder(self.pre_layrnorm(self.embeddings(pixels)), depth)
        if self.is_initializing():
            self.post_layernorm(hidden)
        return hidden


class CLIPVisionModel(nn.Module):
    """CLIP's image encoder. `remat`: what the backward pass recomputes in each layer (`common.remat`); `scan_layers`:
    whether their parameters are stacked under `layers`, else they are apart (`common.unscan_layers`).
    """

    config: CLIPVisionConfig
    dtype: Dtype = jnp.float32
    remat: str = "none"
    scan_layers: bool = True

    def setup(self):
        self.vision_model = CLIPVisionTransformer(self.config, self.dtype, self.remat, self.scan_layers)

    def __call__(self, pixels: Float[Array, "b h w c"], select_layer: int = -2) -> Float[Array, "b patches d"]:
        """The patch states of one layer, the class token dropped, as LLaVA feeds them to its projector.

        `pixels` are CLIP-normalised, `image_size` square. `select_layer` indexes transformers'
        `hidden_states`: 0 is the embeddings, -1 the last layer (before the final norm); layers after it do
        not run. Raises ValueError for another image size or a layer that does not exist.
        """
        layers = self.config.num_hidden_layers
        depth = select_layer if select_layer >= 0 else layers + 1 + select_layer
        if not 0 <= depth <= layers:
            raise ValueError(f"select_layer {select_layer} is not a hidden state of {layers} layers")
        return self.vision_model(pixels, depth)[:, 1:]

    def pooled(self, pixels: Float[Array, "b h w c"]) -> tuple[Float[Array, "b tokens d"], Float[Array, "b d"]]:
        """transformers' (last_hidden_state, pooler_output): every token of the last layer, class token first,
        and the class token after the final norm. `pixels` as in `__call__`.
        """
        hidden = self.vision_model(pixels, self.config.num_hidden_layers)
        return hidden, self.vision_model.post_layernorm(hidden[:, 0])
