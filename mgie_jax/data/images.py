"""The squares a model is shown of an editing pair: one crop for both pictures."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mgie_jax.photo import PhotoError

CROPS = ("center", "random")
MAX_DISTORTION = 0.02  # by how much the aspect ratios of a pair may differ
_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


@dataclass(frozen=True)
class Crop:
    """A square as long as a picture's short side.

    Attributes:
      at: where it lies along the long side: 0 is the left or upper end, 1 the other.
      mirrored: left and right change places.
    """

    at: float = 0.5
    mirrored: bool = False


def draw_crop(crop: str, words: str, rng: np.random.Generator) -> Crop:
    """The crop of one pair.

    Args:
      crop: "center" is what MGIE's released training does. "random" is a random place, mirrored half of the time as
        InstructPix2Pix's training does (`EditDataset`), but never where the words name a side.
      words: what is said about the pair.
    """
    if crop == "center":
        return Crop()
    at, mirrored = rng.random(), rng.random() < 0.5
    return Crop(at, mirrored and not _SIDES.search(words))


def square(photo: Image.Image, crop: Crop, size: int) -> Image.Image:
    """A picture's crop at `size` px, bicubic as in MGIE's released code."""
    width, height = photo.size
    side = min(width, height)
    left, top = int(crop.at * (width - side)), int(crop.at * (height - side))
    photo = resized(photo.crop((left, top, left + side, top + side)), size)
    return photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.mirrored else photo


def resized(photo: Image.Image, size: int) -> Image.Image:
    """A square picture at `size` px, bicubic."""
    return photo if photo.size == (size, size) else photo.resize((size, size), Image.Resampling.BICUBIC)


def check_same_shape(before: Image.Image, after: Image.Image) -> None:
    """Raise PhotoError unless the pictures of a pair have one aspect ratio: a crop must show the same in both."""
    (w, h), (w2, h2) = before.size, after.size
    if abs(math.log(w * h2 / (h * w2))) > MAX_DISTORTION:
        raise PhotoError(f"the pictures before and after have different shapes, {w} x {h} and {w2} x {h2} pixels")
