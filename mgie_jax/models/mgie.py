"""The parts put together: which modules a model has, its parameters, and how states become guidance."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Int, Key

from mgie_jax.models.edit_head import EditHead
from mgie_jax.models.mllm import MLLM
from mgie_jax.models.presets import MGIEConfig
from mgie_jax.models.quantize import Quantized
from mgie_jax.models.unet import UNet2DConditionModel
from mgie_jax.models.vae import AutoencoderKL

NUM_IMG_TOKENS = 8


@dataclass(frozen=True)
class MGIE:
    """The four modules of `config`; their parameters are the entries of one dict, under the same names.

    Attributes:
        dtype: what the networks compute in, whatever their parameters are stored in; statistics of norms, softmax,
            logits, the VAE's posterior and so the losses are float32.
        remat: what the backward pass recomputes in the MLLM's layers and the UNet's blocks (`common.remat`).
        scan_layers: whether the parameters of the MLLM's layers are stacked, as files, training and meshes have them,
            or those of each layer lie apart (`llama.LlamaModel`), as a CPU prefers them.
        quantize: None, or one of `quantize.MODES`: some kernels of the parameters are int8 (`quantize_params`).
    """

    config: MGIEConfig
    dtype: Dtype = jnp.float32
    remat: str = "none"
    scan_layers: bool = True
    quantize: str | None = None

    @property
    def mllm(self) -> MLLM | Quantized:
        return self._quantized(MLLM(self.config.mllm, self.dtype, self.remat, self.scan_layers))

    @property
    def edit_head(self) -> EditHead:
        return EditHead(self.config.edit_head, self.dtype)

    @property
    def unet(self) -> UNet2DConditionModel | Quantized:
        return self._quantized(UNet2DConditionModel(self.config.unet, self.dtype, self.remat))

    @property
    def vae(self) -> AutoencoderKL:
        return AutoencoderKL(self.config.vae, self.dtype)

    def _quantized(self, module: nn.Module) -> nn.Module | Quantized:
        return module if self.quantize is None else Quantized(module, activations=self.quantize == "int8")

    def init(self, key: Key[Array, ""]) -> dict:
        """Random parameters: {"mllm", "edit_head", "unet", "vae"}, not quantized."""
        c, keys = self.config, jax.random.split(key, 5)
        vision, f = c.mllm.vision, c.vae.downsampling
        ids = jnp.zeros((1, 1), jnp.int32)
        photo = jnp.zeros((1, vision.image_size, vision.image_size, vision.num_channels))
        side = f * 2 ** (len(c.unet.block_out_channels) - 1)
        latents = jnp.zeros((1, side // f, side // f, c.unet.in_channels))
        guidance = jnp.zeros((1, c.edit_head.num_queries, c.edit_head.cross_attention_dim))
        states = jnp.zeros((1, NUM_IMG_TOKENS, c.edit_head.llm_hidden_size))
        return {
            "mllm": self.mllm.init(keys[0], ids, ids == 0, photo)["params"],
            "edit_head": self.edit_head.init(keys[1], states)["params"],
            "unet": self.unet.init(keys[2], latents, jnp.zeros(1), guidance)["params"],
            "vae": self.vae.init(keys[3], jnp.zeros((1, side, side, c.vae.in_channels)), keys[4])["params"],
        }

    def shapes(self) -> dict:
        """The tree that `init` returns, as shapes and dtypes, without memory."""
        return jax.eval_shape(self.init, jax.random.key(0))


def img_states(
    hidden: Float[Array, "b l d"], img0: Int[Array, " b"], length: Int[Array, " b"]
) -> Float[Array, "b n d"]:
    """The eight states that predict `[IMG0]`..`[IMG7]`.

    `img0` is the position of `[IMG0]` in each row, at least `length` where the row has none; `length` counts the
    row's states. Source: reference implementation, p = min(img0 - 1, length - 9).
    """
    first = jnp.clip(jnp.minimum(img0 - 1, length - NUM_IMG_TOKENS - 1), 0)
    index = first[:, None] + jnp.arange(NUM_IMG_TOKENS)
    return jnp.take_along_axis(hidden, index[..., None], axis=1)


def img_embeddings(mllm_params: dict, img0_id: int) -> Float[Array, "n d"]:
    """EMB: the word embedding's rows for the `[IMG]` tokens."""
    return mllm_params["model"]["embed_tokens"]["embedding"][img0_id : img0_id + NUM_IMG_TOKENS]
