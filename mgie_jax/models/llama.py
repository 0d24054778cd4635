"""LLaMA, decoder-only: transformers' `LlamaForCausalLM`, parameter for parameter (arXiv 2302.13971).

Layers are scanned, so their parameters carry a leading layer axis, or stand apart. RMSNorm, rotary angles and softmax
are float32 whatever the compute dtype.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from mgie_jax.models.attention import dot_product_attention
from mgie_jax.models.common import append_to_stack, remat
from mgie_jax.sharding import BATCH, constrain
from mgie_jax.types import KVCache


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes, named as in the Hugging Face config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.num_attention_heads} heads do not divide hidden size {self.hidden_size}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_key_value_heads} key/value heads do not divide {self.num_attention_heads} heads"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


def init_cache(config: LlamaConfig, batch: int, slots: int, dtype: Dtype = jnp.float32) -> KVCache:
    """An empty cache with room for `slots` tokens a row, padding included."""
    shape = (config.num_hidden_layers, batch, slots, config.num_key_value_heads, config.head_dim)
    return KVCache(
        keys=jnp.zeros(shape, dtype),
        values=jnp.zeros(shape, dtype),
        valid=jnp.zeros((batch, slots), bool),
        index=jnp.zeros((), jnp.int32),
    )


def text_positions(mask: Bool[Array, "b l"]) -> Int[Array, "b l"]:
    """0, 1, 2... over the real tokens of each row, wherever its padding is; padding repeats a neighbour."""
    return jnp.maximum(jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)


def rotary_angles(
    positions: Int[Array, "b l"], head_dim: int, theta: float
) -> tuple[Float[Array, "b l head_dim"], Float[Array, "b l head_dim"]]:
    """Cosines and sines in float32, the angles twice over as transformers' rotate-half layout wants."""
    inverse_frequency = theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * inverse_frequency
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "b l heads head_dim"],
    cos: Float[Array, "b l head_dim"],
    sin: Float[Array, "b l head_dim"],
) -> Float[Array, "b l heads head_dim"]:
    """Rotary position embedding (arXiv 2104.09864), rotate-half convention, computed in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x * cos[:, :, None] + turned * sin[:, :, None]).astype(x.dtype)


class LlamaAttention(nn.Module):
    config: LlamaConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x, stack, layer, cos, sin, valid, index):
        config = self.config

        def heads(count, name):
            y = nn.Dense(count * config.head_dim, use_bias=False, dtype=self.dtype, name=name)(x)
            return y.reshape(*y.shape[:-1], count, config.head_dim)

        q = rotate(heads(config.num_attention_heads, "q_proj"), cos, sin)
        k = rotate(heads(config.num_key_value_heads, "k_proj"), cos, sin)
        v = heads(config.num_key_value_heads, "v_proj")
        if stack is not None:
            stack, k, v = append_to_stack(stack, k, v, layer, index)
        y = dot_product_attention(q, k, v, valid=valid, start=0 if stack is None else index)
        y = y.reshape(*y.shape[:-2], -1)
        return nn.Dense(config.hidden_size, use_bias=False, dtype=self.dtype, name="o_proj")(y), stack


class LlamaMLP(nn.Module):
    config: LlamaConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype)
        gate = dense(self.config.intermediate_size, name="gate_proj")(x)
        up = dense(self.config.intermediate_size, name="up_proj")(x)
        return dense(self.config.hidden_size, name="down_proj")(nn.silu(gate) * up)


class LlamaLayer(nn.Module):
    """One decoder layer, the body of a scan that carries the activations and the cache's stack, if any."""

    config: LlamaConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, carry, layer, cos, sin, valid, index):
        x, stack = carry
        norm = partial(nn.RMSNorm, epsilon=self.config.rms_norm_eps, dtype=self.dtype)
        attended, stack = LlamaAttention(self.config, self.dtype, name="self_attn")(
            norm(name="input_layernorm")(x), stack, layer, cos, sin, valid, index
        )
        x = x + attended
        x = x + LlamaMLP(self.config, self.dtype, name="mlp")(norm(name="post_attention_layernorm")(x))
        return (constrain(x, BATCH), stack), None


class LlamaModel(nn.Module):
    """Word embedding, decoder layers, final norm: what transformers keeps under `model.`

    Attributes:
        remat: what the backward pass recomputes in each layer (`common.remat`).
        scan_layers: one layer is compiled, and turns over parameters stacked under `layers`; else each has its own,
            `layers_0`, `layers_1`... (`common.unscan_layers`), and is compiled for itself. A CPU copies a layer's
            parameters out of the stack before it multiplies with them: a decoding step takes about twice as long.
    """

    config: LlamaConfig
    dtype: Dtype = jnp.float32
    remat: str = "none"
    scan_layers: bool = True

    def setup(self):
        config, layer = self.config, remat(LlamaLayer, self.remat, scanned=self.scan_layers)
        self.embed_tokens = nn.Embed(config.vocab_size, config.hidden_size, dtype=self.dtype)
        if self.scan_layers:
            layer = nn.scan(
                layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
                length=config.num_hidden_layers,
            )
            self.layers = layer(config, self.dtype)
        else:
            self.layers = [layer(config, self.dtype) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(epsilon=config.rms_norm_eps, dtype=self.dtype)

    def embed(self, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Rows of the word embedding."""
        # The table lies along its width: each device looks up its part of every row, and then they exchange, in two
        # steps that XLA knows. Left alone, it would have each of them hold all rows whole on the way.
        x = constrain(self.embed_tokens(ids), PartitionSpec("data", None, ("fsdp", "tensor")))
        return constrain(x, PartitionSpec(*BATCH, None, "tensor"))

    def __call__(
        self,
        inputs_embeds: Float[Array, "b l d"],
        positions: Int[Array, "b l"],
        mask: Bool[Array, "b l"],
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "b l d"], KVCache | None]:
        """See `LlamaForCausalLM.__call__`."""
        config, length = self.config, inputs_embeds.shape[1]
        if cache is None:
            stack, index, valid = None, None, mask
        else:
            if length > cache.valid.shape[1]:
                raise ValueError(f"{length} tokens do not fit a cache of {cache.valid.shape[1]} slots")
            stack, index = (cache.keys, cache.values), cache.index
            valid = jax.lax.dynamic_update_slice(cache.valid, mask, (0, index))
        cos, sin = rotary_angles(positions, config.head_dim, config.rope_theta)
        carry, shared = (constrain(inputs_embeds.astype(self.dtype), BATCH), stack), (cos, sin, valid, index)
        if self.scan_layers:
            carry, _ = self.layers(carry, jnp.arange(config.num_hidden_layers), *shared)
        else:
            for i, layer in enumerate(self.layers):
                carry, _ = layer(carry, i, *shared)
        x, stack = carry
        if cache is not None:
            cache = KVCache(keys=stack[0], values=stack[1], valid=valid, index=index + length)
        return self.norm(x), cache


def vocabulary_head(config: LlamaConfig, dtype: Dtype) -> nn.Dense:
    """`lm_head`: its logits accumulate and stay in float32, so that close tokens do not tie in bfloat16."""
    accumulate = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
    return nn.Dense(config.vocab_size, use_bias=False, dtype=dtype, dot_general=accumulate)


class LlamaForCausalLM(nn.Module):
    """LLaMA with its vocabulary head; `lm_head` is the word embedding when `tie_word_embeddings`."""

    config: LlamaConfig
    dtype: Dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        self.model = LlamaModel(self.config, self.dtype, self.remat)
        if not self.config.tie_word_embeddings:
            self.lm_head = vocabulary_head(self.config, self.dtype)

    def __call__(
        self,
        inputs_embeds: Float[Array, "b l d"],
        positions: Int[Array, "b l"],
        mask: Bool[Array, "b l"],
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "b l d"], KVCache | None]:
        """The states after the final norm, and the cache with these l tokens added.

        `positions` count the real tokens of each row from 0 (`text_positions`); `mask` is False on padding,
        which may stand at either end. With a cache the tokens follow those it holds; the caller leaves room
        for them: past the last slot, writes would fall on the newest ones. Raises ValueError if l alone
        exceeds the slots.
        """
        hidden, cache = self.model(inputs_embeds, positions, mask, cache)
        if self.is_initializing():  # both are used only through the other methods, yet are parameters
            self.embed(jnp.zeros((1, 1), jnp.int32))
            self.logits(hidden)
        return hidden, cache

    def embed(self, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Rows of the word embedding."""
        return self.model.embed(ids)

    def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b vocab"]:
        """Next-token logits in float32."""
        if self.config.tie_word_embeddings:
            table = self.model.embed_tokens.embedding.astype(self.dtype)
            return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)
        return self.lm_head(hidden)
