"""A fixed number of the endless examples of `data.generate`, written down."""

from __future__ import annotations

import functools
import os

from PIL import Image

from mgie_jax.data.builders.base import PairBuilder
from mgie_jax.data.builders.candidates import Candidate, Pair, Splits, as_png
from mgie_jax.data.cutouts import load_cutouts
from mgie_jax.data.generate import EditPairs
from mgie_jax.data.photos import load
from mgie_jax.data.records import DataSetError


class Generated(PairBuilder):
    """Examples 0 to `examples` - 1 of `EditPairs`, from a folder of photos that `mgie data photos` made.

    Args:
      examples: of each split.
      size: side of the pictures, pixels.
      seed: chooses the sequence.
      cutouts: a folder of captioned cut-outs, for local edits.
      kwargs: of `PairBuilder`; `source` is the folder of photos.
    """

    name = "generated"
    DESCRIPTION = "Editing pairs generated from photographs, with instructions and expressive instructions."

    def __init__(self, *, examples: int = 1000, size: int = 128, seed: int = 0,
                 cutouts: str | os.PathLike | None = None, **kwargs):  # fmt: skip
        self.examples, self.size, self.seed, self.cutouts = examples, size, seed, cutouts
        super().__init__(**kwargs)

    def candidates(self) -> Splits:
        """Of train and heldout, those that have photos."""
        try:
            photos = {split: list(load(self.source, split).values()) for split in ("train", "heldout")}
            cutouts = load_cutouts(self.cutouts) if self.cutouts else ()
        except FileNotFoundError as error:
            raise DataSetError(f"{error}: there is no such folder, or `mgie data photos` did not make it") from error
        splits = {}
        for split in [split for split in photos if photos[split]]:
            pairs = EditPairs(photos[split], split=split, seed=self.seed, size=self.size, cutouts=cutouts)
            splits[split] = [
                Candidate(f"{split}-{self.seed}-{index}", functools.partial(_made, pairs, index))
                for index in range(self.examples)
            ]
        return splits


def _made(pairs: EditPairs, index: int) -> Pair:
    example = pairs.example(index)
    source, target = (as_png(Image.fromarray(pixels)) for pixels in (example.source, example.target))
    return Pair(source, target, example.instruction, example.expressive)
