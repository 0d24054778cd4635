"""Batches for training: examples of edits, tokenized, preprocessed and stacked, as a pure function of a number."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mgie_jax.data.generate import EditExample, EditPairs
from mgie_jax.models.presets import MGIEConfig
from mgie_jax.photo import CLIP_MEAN, CLIP_STD, clip_pixels
from mgie_jax.text.prompt import IGNORE, PromptTokenizer, pad_batch
from mgie_jax.train.loss import EditPairBatch, TextBatch


def text_batch(
    examples: list[EditExample], tokenizer: PromptTokenizer, model: MGIEConfig, length: int
) -> TextBatch:
    """The MLLM's side of some examples, padded to `length` tokens.

    Raises:
        ValueError: an example needs more than `length` tokens.
    """
    rows = [tokenizer.encode_example(example.instruction, example.expressive) for example in examples]
    ids, mask = pad_batch([ids for ids, _ in rows], [length], pad_id=tokenizer.pad_id)
    labels, _ = pad_batch([labels for _, labels in rows], [length], pad_id=IGNORE)
    size = model.mllm.vision.image_size
    seen = [clip_pixels(Image.fromarray(example.source), size, CLIP_MEAN, CLIP_STD) for example in examples]
    return TextBatch(ids=ids, mask=mask, labels=labels, clip_pixels=np.stack(seen))


def text_batches(
    pairs: EditPairs, tokenizer: PromptTokenizer, model: MGIEConfig, batch_size: int, length: int
) -> Callable[[int], TextBatch]:
    """Batch `number` holds examples number * batch_size onwards."""

    def batch(number: int) -> TextBatch:
        examples = [pairs.example(number * batch_size + i) for i in range(batch_size)]
        return text_batch(examples, tokenizer, model, length)

    return batch


def edit_pair_batches(
    pairs: EditPairs, tokenizer: PromptTokenizer, model: MGIEConfig, batch_size: int, length: int, size: int
) -> Callable[[int], EditPairBatch]:
    """As `text_batches`, with source and target at `size` px, which divides the examples' own size."""
    if pairs.size % size:
        raise ValueError(f"examples of {pairs.size} px cannot be shrunk evenly to {size} px")

    def batch(number: int) -> EditPairBatch:
        examples = [pairs.example(number * batch_size + i) for i in range(batch_size)]
        return EditPairBatch(
            text=text_batch(examples, tokenizer, model, length),
            source=np.stack([_shrink(example.source, size) for example in examples]),
            target=np.stack([_shrink(example.target, size) for example in examples]),
        )

    return batch


def _shrink(photo: UInt8[np.ndarray, "h w 3"], size: int) -> Float[np.ndarray, "s s 3"]:
    """Means of square blocks, in [-1, 1]."""
    f = photo.shape[0] // size
    return photo.reshape(size, f, size, f, 3).mean((1, 3), dtype=np.float32) / 127.5 - 1.0
