"""A model on the device and the inputs of its stages, which a peer is given as well."""

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from mgie_jax import edit, editor
from mgie_jax.bench.inputs import INSTRUCTION, SEED, Source, photo
from mgie_jax.diffusion import sample
from mgie_jax.models.mgie import MGIE, NUM_IMG_TOKENS
from mgie_jax.models.quantize import quantize_params
from mgie_jax.text.prompt import PromptTokenizer

DECODED = 32  # tokens beside the first in a measured answer, at most


@dataclass(frozen=True)
class Case:
    """A model on the device, and what its stages are run on.

    Attributes:
        editor: with the model's weights; its own private parts are left alone.
        photos: (width, height) of them, and how many.
    """

    editor: editor.Editor
    size: tuple[int, int]
    rows: int

    @property
    def model(self) -> MGIE:
        """Its modules, as the editor runs them."""
        return self.editor.model

    @property
    def params(self) -> dict:
        return self.editor.params

    @property
    def tokens(self) -> int:
        """Those of a measured answer."""
        return 1 + min(DECODED, self.model.config.sampling.max_new_tokens - 1)

    @cached_property
    def sampler(self) -> sample.Sampler:
        sampling = self.model.config.sampling
        return sample.SAMPLERS[sampling.sampler](self.model.config.schedule, sampling.steps)

    @cached_property
    def keys(self) -> jax.Array:
        """A key for each row, as an edit has them: of seeds 0, 1..."""
        return jax.vmap(jax.random.key)(jnp.arange(self.rows, dtype=jnp.uint32))

    @cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        """The inputs of all stages, by name; floats are float32.

        A photo's `ids` (b, l), `mask`, `clip_pixels`, `pixels`; standard normal `embeds` (b, l, d), `states` (b, 8, d),
        `context` (3b, q, d) of the three branches and `sample` (3b, h, w, c) beside it, and `latents` (b, h, w, c).
        Of a whole denoising `image_latents`, `guidance`, `null_guidance`, `noise` (b, h, w, c) and, for a sampler that
        wants them, the steps' `noises` (n, b, h, w, c).
        """
        sizes, rng = self.model.config, np.random.default_rng(SEED)
        prepared = [self.editor.prepare(photo(self.size, SEED + row), INSTRUCTION) for row in range(self.rows)]
        width = self.editor.width(INSTRUCTION)
        ids = np.full((self.rows, width), self.editor.tokenizer.pad_id, np.int32)
        ids[:, : len(prepared[0].ids)] = prepared[0].ids
        head, f = sizes.edit_head, sizes.vae.downsampling
        places = (self.size[1] // f, self.size[0] // f)
        latents = (self.rows, *places, sizes.vae.latent_channels)

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32)

        noise, noise_fn = sample.noise_from_keys(self.keys, latents)
        steps = range(sizes.sampling.steps if self.sampler.stochastic else 0)
        return {
            "ids": ids,
            "mask": np.broadcast_to(np.arange(width) < len(prepared[0].ids), ids.shape).copy(),
            "clip_pixels": np.stack([one.clip_pixels for one in prepared]),
            "pixels": np.stack([one.pixels for one in prepared]),
            "embeds": normal(self.rows, len(prepared[0].ids), sizes.mllm.llm.hidden_size),
            "states": normal(self.rows, NUM_IMG_TOKENS, head.llm_hidden_size),
            "sample": normal(3 * self.rows, *places, sizes.unet.in_channels),
            "context": normal(3 * self.rows, head.num_queries, head.cross_attention_dim),
            "latents": normal(*latents),
            "image_latents": normal(*latents),
            "guidance": normal(self.rows, head.num_queries, head.cross_attention_dim),
            "null_guidance": normal(1, head.num_queries, head.cross_attention_dim),
            "noise": np.asarray(noise),
            "noises": np.stack([np.asarray(noise_fn(step)) for step in steps]) if steps else np.zeros((0, *latents)),
        }

    @cached_property
    def batch(self) -> edit.EditBatch:
        x, sampling = self.inputs, self.model.config.sampling
        return jax.device_put(edit.EditBatch(
            ids=x["ids"], mask=x["mask"], clip_pixels=x["clip_pixels"], pixels=x["pixels"],
            scales=sample.scales(self.rows, sampling.guidance_scale, sampling.image_guidance_scale),
        ))  # fmt: skip

    def of(self, name: str) -> jax.Array:
        """An input in the model's dtype, on the device."""
        return jnp.asarray(self.inputs[name], self.model.dtype)


def make_case(
    source: Source,
    tokenizer: PromptTokenizer,
    dtype: Dtype,
    size: tuple[int, int] | None,
    rows: int,
    quantize: str | None = None,
) -> Case:
    """A case of `rows` photos.

    Args:
        dtype: of weights and arithmetic.
        size: height and width of the photos, by default the model's resolution twice.
        quantize: as `loading.load` has it.
    """
    sizes, side = source.sizes, source.sizes.sampling.resolution
    params = source.params(dtype, place=jax.device_put)
    params = quantize_params(params) if quantize else params
    height, width = size or (side, side)
    made = editor.Editor(sizes, params, tokenizer, dtype=dtype, quantize=quantize)
    return Case(made, (width, height), rows)
