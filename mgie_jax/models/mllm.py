"""The multimodal LLM: CLIP vision tower, projector and LLaMA, wired as LLaVA wires them (arXiv 2304.08485).

Parameters sit under `vision_tower` (a whole `CLIPVisionModel`), `model` (LLaMA's, with `mm_projector`) and
`lm_head`.
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float, Int

from mgie_jax.models.clip import CLIPVisionConfig, CLIPVisionModel
from mgie_jax.models.llama import LlamaConfig, LlamaModel, text_positions, vocabulary_head
from mgie_jax.sharding import BATCH, constrain
from mgie_jax.types import KVCache


@dataclass(frozen=True)
class MLLMConfig:
    """The two networks, what joins them, and the id of `<im_patch>`, which vision features replace."""

    vision: CLIPVisionConfig
    llm: LlamaConfig
    mm_projector_type: Literal["linear", "mlp2x_gelu"]
    im_patch_id: int
    mm_vision_select_layer: int = -2

    def __post_init__(self):
        if self.mm_projector_type not in ("linear", "mlp2x_gelu"):
            raise ValueError(f"unknown mm_projector_type {self.mm_projector_type!r}")
        if not 0 <= self.im_patch_id < self.llm.vocab_size:
            raise ValueError(f"im_patch_id {self.im_patch_id} is outside a vocabulary of {self.llm.vocab_size}")
        if self.llm.tie_word_embeddings:
            raise ValueError("the MLLM trains its word embedding and lm_head apart: they cannot be tied")


def replace_patches(
    embeds: Float[Array, "b l d"], is_patch: Bool[Array, "b l"], features: Float[Array, "b n d"]
) -> Float[Array, "b l d"]:
    """`embeds` with the k-th position where `is_patch` holds the k-th of the features, row by row.

    A row without such positions stays text only. The prompt is to hold exactly n of them: past the n-th,
    positions get the last feature, since shapes inside a compiled program cannot depend on how many there
    are.
    """
    order = jnp.clip(jnp.cumsum(is_patch, axis=-1) - 1, 0, features.shape[1] - 1)
    placed = jnp.take_along_axis(features, order[..., None], axis=1)
    return jnp.where(is_patch[..., None], placed.astype(embeds.dtype), embeds)


class MLP2xGELU(nn.Module):
    """LLaVA-1.5's projector, `torch.nn.Sequential(Linear, GELU, Linear)`."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n v"]) -> Float[Array, "b n d"]:
        x = nn.Dense(self.features, dtype=self.dtype, name="0")(x)
        return nn.Dense(self.features, dtype=self.dtype, name="2")(nn.gelu(x, approximate=False))


class MultimodalLlamaModel(LlamaModel):
    """LLaMA's trunk, which in LLaVA's checkpoints also owns the projector."""

    projector: Literal["linear", "mlp2x_gelu"] = "linear"

    def setup(self):
        super().setup()
        module = {"linear": nn.Dense, "mlp2x_gelu": MLP2xGELU}[self.projector]
        self.mm_projector = module(self.config.hidden_size, dtype=self.dtype)


class MLLM(nn.Module):
    """Vision tower, projector and LLaMA. `remat`: what backward passes recompute in their layers (`common.remat`);
    `scan_layers`: whether these are stacked or apart (`LlamaModel`).
    """

    config: MLLMConfig
    dtype: Dtype = jnp.float32
    remat: str = "none"
    scan_layers: bool = True

    def setup(self):
        config, how = self.config, (self.dtype, self.remat, self.scan_layers)
        self.vision_tower = CLIPVisionModel(config.vision, *how)
        self.model = MultimodalLlamaModel(config.llm, *how, projector=config.mm_projector_type)
        self.lm_head = vocabulary_head(config.llm, self.dtype)

    def __call__(
        self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"], pixels: Float[Array, "b h w c"]
    ) -> Float[Array, "b l d"]:
        """Final hidden states of a whole text, the pass that trains: `h` of the guidance.

        `mask` is False on padding, at either end; states there mean nothing. `pixels` are CLIP-normalised
        NHWC.
        """
        hidden, _ = self.prefill(ids, mask, pixels, None)
        if self.is_initializing():
            self.logits(hidden)
        return hidden

    def prefill(
        self,
        ids: Int[Array, "b l"],
        mask: Bool[Array, "b l"],
        pixels: Float[Array, "b h w c"],
        cache: KVCache | None,
    ) -> tuple[Float[Array, "b l d"], KVCache | None]:
        """Read a prompt with its photo into an empty cache (`llama.init_cache`, of at least l slots)."""
        embeds = replace_patches(self.embed(ids), ids == self.config.im_patch_id, self.encode_image(pixels))
        return self.model(embeds, text_positions(mask), mask, cache)

    def extend(
        self, ids: Int[Array, "b n"], mask: Bool[Array, "b n"], cache: KVCache
    ) -> tuple[Float[Array, "b n d"], KVCache]:
        """Append up to n tokens a row, those where `mask` holds; the state after each, and the cache with them."""
        return self.model(self.embed(ids), cache.next_position[:, None] + text_positions(mask), mask, cache)

    def encode_image(self, pixels: Float[Array, "b h w c"]) -> Float[Array, "b patches d"]:
        """One feature a patch, of the LLM's width."""
        return self.model.mm_projector(self.vision_tower(pixels, self.config.mm_vision_select_layer))

    def embed(self, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Rows of the word embedding."""
        return self.model.embed(ids)

    def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b vocab"]:
        """Next-token logits in float32."""
        return constrain(self.lm_head(hidden), BATCH)
