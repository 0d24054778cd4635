"""Batches for training: examples of edits, tokenized, preprocessed and stacked, as a pure function of a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mgie_jax.data.order import EndlessExamples, Found, Pictures, usable
from mgie_jax.data.pipeline import HostBatch, Rows
from mgie_jax.models.presets import MGIEConfig
from mgie_jax.photo import CLIP_MEAN, CLIP_STD, clip_pixels
from mgie_jax.text.prompt import IGNORE, PromptError, PromptTokenizer, pad_batch
from mgie_jax.train.loss import EditPairBatch, TextBatch


class _Row(NamedTuple):
    """One example, ready to be stacked."""

    id: str
    tokens: list[int]
    labels: list[int]
    clip_pixels: Float[np.ndarray, "s s 3"]
    pictures: Pictures


@dataclass(frozen=True, eq=False)
class TextBatches:
    """A `BatchFn` of `TextBatch`es for the MLLM alone: row r of update k is the example at place k * batch_size + r.

    Attributes:
      batch_size: of the whole batch, over all hosts.
      length: tokens that every row is padded to; examples that need more are skipped (`config.max_tokens`).
    """

    examples: EndlessExamples
    tokenizer: PromptTokenizer
    model: MGIEConfig
    batch_size: int
    length: int

    def __call__(self, number: int, rows: Rows) -> HostBatch:
        """Some rows of batch `number`.

        Raises:
          DataSetError: too many examples in a row are no good.
          ValueError: the tokenizer gives no labels (`PromptTokenizer.encode_example`).
        """
        return self._stacked(number, rows, None)[0]

    def _stacked(self, number: int, rows: Rows, size: int | None) -> tuple[HostBatch, list[_Row]]:
        places = number * self.batch_size + np.arange(self.batch_size)[rows]
        made = [usable(self.examples, int(place), lambda found: self._row(found, size)) for place in places]
        made, skipped = [row for row, _ in made], [skip for _, skips in made for skip in skips]
        ids, mask = pad_batch([row.tokens for row in made], [self.length], pad_id=self.tokenizer.pad_id)
        labels, _ = pad_batch([row.labels for row in made], [self.length], pad_id=IGNORE)
        text = TextBatch(ids=ids, mask=mask, labels=labels, clip_pixels=np.stack([row.clip_pixels for row in made]))
        return HostBatch(text, tuple(row.id for row in made), tuple(skipped)), made

    def _row(self, found: Found, size: int | None) -> _Row:
        tokens, labels = self.tokenizer.encode_example(found.instruction, found.expressive)
        if len(tokens) > self.length:
            raise PromptError(f"is {len(tokens)} tokens long with the prompt around it, the limit is {self.length}")
        pictures = found.pictures(size)
        seen = clip_pixels(pictures.seen, self.model.mllm.vision.image_size, CLIP_MEAN, CLIP_STD)
        return _Row(found.id, tokens, labels, seen, pictures)


@dataclass(frozen=True, eq=False)
class EditPairBatches(TextBatches):
    """A `BatchFn` of `EditPairBatch`es for the joint step: as `TextBatches`, with the pictures at `size` px."""

    size: int

    def __post_init__(self):
        """Raises ValueError where the examples cannot be had at `size` px."""
        self.examples.check_size(self.size)

    def __call__(self, number: int, rows: Rows) -> HostBatch:
        """See `TextBatches`."""
        batch, made = self._stacked(number, rows, self.size)
        source, target = (np.stack([row.pictures[i] for row in made]) for i in (1, 2))
        return HostBatch(EditPairBatch(text=batch.arrays, source=source, target=target), batch.ids, batch.skipped)
