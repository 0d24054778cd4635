"""A picture of held-out edits while a model trains: before, after, target, and the words.

The same photos, words and noise each time, so that two pictures differ by what was learned between them.
"""

import os
from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, PyTree
from PIL import Image

from mgie_jax.compare import sheet
from mgie_jax.data.generate import EditPairs
from mgie_jax.data.order import EndlessExamples, Found, GeneratedExamples, RecordedExamples, usable
from mgie_jax.data.photos import load as load_photos
from mgie_jax.data.records import contents
from mgie_jax.data.records import load as load_records
from mgie_jax.diffusion.sample import SAMPLERS, scales
from mgie_jax.edit import EditBatch, Special, edit
from mgie_jax.models.mgie import MGIE, img_embeddings
from mgie_jax.models.presets import MGIEConfig
from mgie_jax.photo import CLIP_MEAN, CLIP_STD, clip_pixels
from mgie_jax.sharding import on_mesh_of
from mgie_jax.text.prompt import PromptTokenizer, pad_batch

ROWS = 4
HELD_OUT = ("validation", "val", "dev", "test")  # splits, the first that a data set has


def held_out_pairs(photos: str | os.PathLike, seed: int, size: int) -> GeneratedExamples:
    """Generated pairs of the photos that `mgie data photos` held out, in words that no training run has seen.

    Raises:
        ValueError: it held out none.
    """
    held_out = list(load_photos(photos, "heldout").values())
    if not held_out:
        raise ValueError(f"{photos}: no photo was held out to draw a grid of; set config.grid_every=0, or add photos")
    return GeneratedExamples(EditPairs(held_out, split="heldout", seed=seed, size=size))


def held_out_examples(data: str | os.PathLike, resolution: int) -> RecordedExamples:
    """Examples of a built data set's validation split, or of its test split.

    Of a data set that has neither they are of its training split; the picture then shows what the model may have seen.
    """
    splits = contents(data).splits
    split = next((name for name in HELD_OUT if name in splits), None)
    return RecordedExamples([load_records(data, split)], seed=0, resolution=resolution)


def make_grid(
    config: MGIEConfig, tokenizer: PromptTokenizer, examples: EndlessExamples, size: int, dtype: Dtype = jnp.float32
) -> Callable[[int, PyTree], Image.Image]:
    """A function of a step and the whole model's parameters, wherever they lie, that draws a sheet of edits.

    It edits the first `ROWS` examples with the model's own sampler, steps and guidance, as one program that is compiled
    at the first call. Where the parameters lie on a mesh of several processes, all of them must call it.

    Args:
        examples: what to edit, at `size` px.
        size: side of the pictures, pixels.
        dtype: what the networks compute in.
    """
    rows = [usable(examples, place, partial(_row, tokenizer=tokenizer, size=size))[0] for place in range(ROWS)]
    found, tokens, pictures = zip(*rows, strict=True)
    ids, mask = pad_batch(tokens, [max(map(len, tokens))], pad_id=tokenizer.pad_id)
    see = partial(clip_pixels, image_size=config.mllm.vision.image_size, mean=CLIP_MEAN, std=CLIP_STD)
    batch = EditBatch(
        ids=ids,
        mask=mask,
        clip_pixels=np.stack([see(shown.seen) for shown in pictures]),
        pixels=np.stack([shown.source for shown in pictures]),
        scales=scales(ROWS, config.sampling.guidance_scale, config.sampling.image_guidance_scale),
    )
    model, special = MGIE(config, dtype), Special(tokenizer.img_ids[0], tokenizer.eos_id, tokenizer.pad_id)
    sampler = SAMPLERS[config.sampling.sampler](config.schedule, config.sampling.steps)

    def edited(params: PyTree, batch: EditBatch):
        params = {**params, "emb": img_embeddings(params["mllm"], special.img0)}
        keys = jax.vmap(jax.random.key)(jnp.arange(ROWS))
        return edit(model, params, batch, keys, sampler, special)

    @cache
    def compiled(whole: NamedSharding | None):
        return jax.jit(edited, out_shardings=whole)

    def grid(step: int, params: PyTree) -> Image.Image:
        with on_mesh_of(params):
            drawn, answers = jax.device_get(compiled(_everywhere(params))(params, batch))
        sheets = []
        for row in range(ROWS):
            shown = (_image(pictures[row].source), Image.fromarray(drawn[row]), _image(pictures[row].target))
            words = tokenizer.decode_answer(answers[row])
            sheets.append((shown, f"step {step}: \u201c{found[row].instruction}\u201d\n{words}"))
        return sheet(sheets)

    return grid


def _row(example: Found, tokenizer: PromptTokenizer, size: int):
    return example, tokenizer.encode_prompt(example.instruction), example.pictures(size)


def _everywhere(params: PyTree) -> NamedSharding | None:
    """Where every process can read a result: on all of the mesh that the parameters lie on; None on one device."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None


def _image(pixels: Float[np.ndarray, "s s 3"]) -> Image.Image:
    return Image.fromarray(np.round(np.clip(pixels * 127.5 + 127.5, 0, 255)).astype(np.uint8))
