"""Endless editing pairs from photographs, addressable by number.

`EditPairs(...).example(i)` is a pure function of the photos, the settings and `i`: training resumes at any
step by counting, and two hosts make the same example without talking to each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image as PILImage

from mgie_jax.data.cutouts import COLORS, PLACES, Cutout, place, recolored, sprite_of
from mgie_jax.data.expressive import expressive
from mgie_jax.data.ops import GLOBAL_OPS, Image
from mgie_jax.data.photo_stats import measure
from mgie_jax.data.phrasing import article, instruction
from mgie_jax.data.repairs import REPAIRS, degrade

LOCAL_KINDS = ("add", "remove", "recolor", "replace")
KINDS = (*GLOBAL_OPS, *REPAIRS, *LOCAL_KINDS)


@dataclasses.dataclass(frozen=True)
class Mix:
    """How often each family of edits occurs; the shares need not sum to one."""

    globally: float = 0.70
    repairs: float = 0.15
    locally: float = 0.15


@dataclasses.dataclass(frozen=True, eq=False)
class EditExample:
    """One editing pair.

    Attributes:
      source, target: uint8 (size, size, 3).
      instruction: what a person would type.
      expressive: what is seen and what changes, two sentences.
      kind: one of `KINDS`.
      box: for a local edit (top, left, bottom, right), outside which target and source are equal; else None.
    """

    source: np.ndarray
    target: np.ndarray
    instruction: str
    expressive: str
    kind: str
    box: tuple[int, int, int, int] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class EditPairs:
    """A random-access sequence without end.

    Attributes:
      photos: uint8 (h, w, 3) each; every photo of the split, held in memory.
      split: "train": random square crops, flips and slight changes of light, training phrasings; "heldout":
        the central square as it is, held-out phrasings.
      seed: chooses the sequence.
      size: side of the examples, pixels.
      cutouts: objects for local edits; without any, their share of the mix goes to global edits.
      mix: how often each family of edits occurs.
      degraded: how often a photo is spoiled before a repair; otherwise it is repaired as it is.
      weights: how often a kind occurs among its family, against the others' 1.
    """

    photos: Sequence[np.ndarray]
    split: str = "train"
    seed: int = 0
    size: int = 128
    cutouts: Sequence[Cutout] = ()
    mix: Mix = Mix()
    degraded: float = 0.85
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        """Raises ValueError for an unknown split or kind, no photos, or an empty mix."""
        if self.split not in ("train", "heldout"):
            raise ValueError(f"split must be 'train' or 'heldout', not {self.split!r}")
        if isinstance(self.photos, Mapping) or not len(self.photos):
            raise ValueError("photos must be a sequence of at least one array")
        if min(self._shares()) < 0 or sum(self._shares()) <= 0:
            raise ValueError(f"not a mix of edits: {self.mix}")
        if unknown := sorted(set(self.weights) - set(KINDS)):
            raise ValueError(f"weights for unknown kinds {', '.join(unknown)}; known are {', '.join(KINDS)}")
        if min(self.weights.values(), default=1) <= 0:
            raise ValueError(f"weights must be above 0: {dict(self.weights)}")

    def example(self, index: int) -> EditExample:
        """Example number `index` (>= 0), of a kind drawn from the mix."""
        rng = self._rng(index)
        kinds = (tuple(GLOBAL_OPS), tuple(REPAIRS), LOCAL_KINDS)[_drawn(self._shares(), rng)]
        return self._make(kinds[_drawn([self.weights.get(kind, 1.0) for kind in kinds], rng)], rng)

    def example_of(self, kind: str, index: int) -> EditExample:
        """Example number `index` of one kind, for evaluation kind by kind.

        Raises:
          ValueError: there is no such kind, or it needs cut-outs and there are none.
        """
        if kind not in KINDS or (kind in LOCAL_KINDS and not self.cutouts):
            raise ValueError(f"cannot make examples of {kind!r}")
        return self._make(kind, self._rng(index, 1 + KINDS.index(kind)))

    def _rng(self, index: int, stream: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, index, stream, self.split == "heldout"])

    def _shares(self) -> tuple[float, float, float]:
        if self.cutouts:
            return self.mix.globally, self.mix.repairs, self.mix.locally
        return self.mix.globally + self.mix.locally, self.mix.repairs, 0.0

    def _make(self, kind: str, rng: np.random.Generator) -> EditExample:
        photo = self._photo(rng)
        if kind in LOCAL_KINDS:
            return self._local(kind, photo, rng)
        if kind in REPAIRS and rng.random() < self.degraded:
            photo = degrade(photo, kind, rng)
        source = _quantized(photo)
        seen = _floats(source)  # what the model sees decides the answer, not the photo before rounding
        op = GLOBAL_OPS[kind] if kind in GLOBAL_OPS else REPAIRS[kind]
        return EditExample(
            source=source,
            target=_quantized(op(seen)),
            instruction=instruction(kind, self.split, rng),
            expressive=expressive(kind, measure(seen), rng),
            kind=kind,
        )

    def _local(self, kind: str, photo: Image, rng: np.random.Generator) -> EditExample:
        first, second = rng.permutation(len(self.cutouts))[:2] if len(self.cutouts) > 1 else (0, 0)
        thing, other = self.cutouts[int(first)], self.cutouts[int(second)]
        color = tuple(COLORS)[int(rng.integers(len(COLORS)))]
        said, told, x, y = PLACES[tuple(PLACES)[int(rng.integers(len(PLACES)))]]
        sprite = sprite_of(thing, self.size)
        with_thing, box = place(photo, sprite, x, y)
        if kind == "add":
            before, after = photo, with_thing
        elif kind == "remove":
            before, after = with_thing, photo
        elif kind == "recolor":
            before, after = with_thing, place(photo, recolored(sprite, color), x, y)[0]
        else:
            before = with_thing
            after, other_box = place(photo, sprite_of(other, self.size), x, y)
            box = (*map(min, box[:2], other_box[:2]), *map(max, box[2:], other_box[2:]))
        source = _quantized(before)
        slots = {
            "o": thing.name, "a": article(thing.name), "r": other.name, "b": article(other.name), "c": color,
        }  # fmt: skip
        return EditExample(
            source=source,
            target=_quantized(after),
            instruction=instruction(kind, self.split, rng, {**slots, "p": said}),
            expressive=expressive(kind, measure(_floats(source)), rng, {**slots, "p": told}),
            kind=kind,
            box=box,
        )

    def _photo(self, rng: np.random.Generator) -> Image:
        pixels = self.photos[int(rng.integers(len(self.photos)))]
        height, width = pixels.shape[:2]
        short = min(height, width)
        training = self.split == "train"
        side = max(1, round(short * rng.uniform(0.6, 1.0))) if training else short
        at = rng.random(2) if training else (0.5, 0.5)
        top, left = (int(round(u * (extent - side))) for u, extent in zip(at, (height, width), strict=True))
        crop = pixels[top : top + side, left : left + side]
        if training and rng.random() < 0.5:
            crop = crop[:, ::-1]
        image = _floats(_resized(crop, self.size))
        if training:
            image = image ** np.float32(np.exp(rng.normal(0, 0.18)))
            image = np.minimum(image * rng.uniform(0.93, 1.07, 3).astype(np.float32), 1)
        return image


def _drawn(shares: Sequence[float], rng: np.random.Generator) -> int:
    """An index, as often as its share says."""
    bounds = np.cumsum(shares)
    return int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:
    if pixels.shape[:2] == (size, size):
        return pixels
    image = PILImage.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((size, size), PILImage.Resampling.BILINEAR))


def _floats(pixels: np.ndarray) -> Image:
    return pixels.astype(np.float32) * np.float32(1 / 255)


def _quantized(image: Image) -> np.ndarray:
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
