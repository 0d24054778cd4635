"""The endless order of training examples: which example stands at which place, as a pure function of the place.

Update k trains on places k * B to (k + 1) * B - 1, B being the global batch size. Nothing else is state: a run is
resumed by counting, and any number of hosts and workers sees the same examples in the same order. Where an example
cannot be used, its place is taken by the next of a chain which the place alone decides, too.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import grain
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mgie_jax.data.generate import EditExample, EditPairs
from mgie_jax.data.images import CROPS, check_same_shape, draw_crop, resized, square
from mgie_jax.data.records import DataSetError, Example, Examples, load
from mgie_jax.photo import PhotoError, decode_photo, to_pixels
from mgie_jax.text.prompt import PromptError

ATTEMPTS = 100  # examples tried for one place before all of them are taken for broken
_FAR = 2**40  # places from here on are those of substitutes

T = TypeVar("T")


class Unusable(ValueError):
    """The example `id` cannot be trained on, for `reason`."""

    def __init__(self, id: str, reason: str):
        super().__init__(id, reason)
        self.id, self.reason = id, reason


class Pictures(NamedTuple):
    """Of one pair: what the MLLM sees, and where a size was asked for, both squares of that size in [-1, 1]."""

    seen: Image.Image
    source: Float[np.ndarray, "s s 3"] | None
    target: Float[np.ndarray, "s s 3"] | None


class Found(NamedTuple):
    """An example; `pictures(size)` makes its pictures and may raise PhotoError. Without a size, only `seen`."""

    id: str
    instruction: str
    expressive: str
    pictures: Callable[[int | None], Pictures]


@runtime_checkable
class EndlessExamples(Protocol):
    """An endless order of examples; it can be pickled, and so sent to worker processes."""

    def find(self, place: int, attempt: int = 0) -> Found:
        """The example at a place, or the one that stands in for it after `attempt` others. May raise Unusable."""

    def check_size(self, size: int) -> None:
        """Raise ValueError unless pictures can be made at `size` px."""


def usable(examples: EndlessExamples, place: int, make: Callable[[Found], T]) -> tuple[T, list[tuple[str, str]]]:
    """`make` of the first example for `place` that is good, and (id, reason) of those before it.

    Args:
      make: raises PhotoError or PromptError where the example cannot be used; other errors are not caught.

    Raises:
      DataSetError: `ATTEMPTS` examples in a row are no good.
    """
    skipped: list[tuple[str, str]] = []
    for attempt in range(ATTEMPTS):
        try:
            found = examples.find(place, attempt)
        except Unusable as error:
            skipped.append((error.id, error.reason))
            continue
        try:
            return make(found), skipped
        except (PhotoError, PromptError) as error:
            skipped.append((found.id, str(error)))
    named = "; ".join(f"{id} ({reason})" for id, reason in skipped[-3:])
    raise DataSetError(f"{ATTEMPTS} examples in a row cannot be used; the last: {named}")


@dataclass(frozen=True, eq=False)
class GeneratedExamples:
    """Generated pairs in their own order, which is random already: place p holds example p."""

    pairs: EditPairs

    def find(self, place: int, attempt: int = 0) -> Found:
        """See `EndlessExamples.find`."""
        number = _substitute(self.pairs.seed, place, attempt)
        example = self.pairs.example(number)
        name = f"{self.pairs.split}-{self.pairs.seed}-{number}"
        return Found(name, example.instruction, example.expressive, partial(_generated, example))

    def check_size(self, size: int) -> None:
        """Raise ValueError unless `size` divides the examples' own size."""
        if self.pairs.size % size:
            raise ValueError(f"examples of {self.pairs.size} px cannot be shrunk evenly to {size} px")


@dataclass(frozen=True, eq=False)
class RecordedExamples:
    """One or several data sets on disk, shuffled anew in each epoch.

    Attributes:
      data: splits of data sets.
      seed: of the order and the crops.
      resolution: the square, in pixels, that both pictures are brought to first and the MLLM sees: the size at which
        the model edits.
      crop: "center" or "random"; see `images.draw_crop`.
      weights: how often each data set is drawn from, against the others. Without, an epoch holds every example of all
        of them once.
    """

    data: Sequence[Examples]
    seed: int
    resolution: int
    crop: str = "center"
    weights: Sequence[float] = ()

    def __post_init__(self):
        """Raises ValueError for an unknown crop, weights that do not fit, or data sets without examples."""
        if self.crop not in CROPS:
            raise ValueError(f"crop must be one of {', '.join(CROPS)}, not {self.crop!r}")
        if self.weights and (len(self.weights) != len(self.data) or min(self.weights) <= 0):
            raise ValueError(f"{len(self.data)} data sets need as many weights above 0, not {tuple(self.weights)}")
        if not self.data or not all(map(len, self.data)):
            raise DataSetError(f"no examples in {', '.join(map(repr, self.data)) or 'no data set'}")

    @classmethod
    def open(cls, data: str, *, seed: int, resolution: int, crop: str = "center",
             weights: Sequence[float] = ()) -> RecordedExamples:  # fmt: skip
        """The training splits of the data sets at `data`, folders separated by commas.

        Raises:
          DataSetError: as `records.load` does.
          ValueError: see above.
        """
        folders = [folder.strip() for folder in data.split(",")]
        return cls([load(folder) for folder in folders if folder], seed, resolution, crop, tuple(weights))

    def find(self, place: int, attempt: int = 0) -> Found:
        """See `EndlessExamples.find`."""
        number = int(self._order[_substitute(self.seed, place, attempt)])
        which = bisect.bisect_right(self._starts, number) - 1
        examples, index = self.data[which], number - self._starts[which]
        try:
            example = examples[index]
        except DataSetError as error:
            raise Unusable(f"{examples.name}/{index}", str(error)) from error
        name = f"{examples.name}/{example.id}"
        if not example.expressive:
            raise Unusable(name, "has no expressive instruction; `mgie prepare` writes them")
        pictures = partial(_recorded, example, self.crop, self.resolution, (self.seed, place, attempt))
        return Found(name, example.instruction, example.expressive, pictures)

    def check_size(self, size: int) -> None:
        """Any size will do."""

    @cached_property
    def _starts(self) -> list[int]:
        """Where each data set begins when all of them are counted through."""
        return [0, *itertools.accumulate(len(examples) for examples in self.data)][:-1]

    @cached_property
    def _order(self) -> grain.MapDataset:
        # Seeds are derived here and not by Grain, whose rule for it may change from one release to the next.
        seeds = np.random.SeedSequence(self.seed).generate_state(1 + len(self.data)).tolist()
        if not self.weights:
            total = self._starts[-1] + len(self.data[-1])
            return grain.MapDataset.range(total).shuffle(seed=seeds[0]).repeat()
        parts = [
            grain.MapDataset.range(start, start + len(examples)).shuffle(seed=seed).repeat()
            for start, examples, seed in zip(self._starts, self.data, seeds[1:], strict=True)
        ]
        return grain.MapDataset.mix(parts, self.weights)


def _substitute(seed: int, place: int, attempt: int) -> int:
    """The place itself, or for a later attempt a random one far beyond any that a run reaches."""
    return _FAR + int(np.random.default_rng([seed, place, attempt]).integers(_FAR)) if attempt else place


def _generated(example: EditExample, size: int | None) -> Pictures:
    seen = Image.fromarray(example.source)
    if size is None:
        return Pictures(seen, None, None)
    return Pictures(seen, _block_means(example.source, size), _block_means(example.target, size))


def _block_means(photo: UInt8[np.ndarray, "h w 3"], size: int) -> Float[np.ndarray, "s s 3"]:
    """Means of square blocks, in [-1, 1]."""
    f = photo.shape[0] // size
    return photo.reshape(size, f, size, f, 3).mean((1, 3), dtype=np.float32) / 127.5 - 1.0


def _recorded(example: Example, crop: str, resolution: int, seed: Sequence[int], size: int | None) -> Pictures:
    """As MGIE's released code makes them: the square at the size of editing, from there to the size of training."""
    before = decode_photo(example.source, "the picture before")
    drawn = draw_crop(crop, f"{example.instruction} {example.expressive}", np.random.default_rng(seed))
    seen = square(before, drawn, resolution)
    if size is None:
        return Pictures(seen, None, None)
    after = decode_photo(example.target, "the picture after")
    check_same_shape(before, after)
    target = square(after, drawn, resolution)
    return Pictures(seen, *(to_pixels(resized(photo, size)) for photo in (seen, target)))
