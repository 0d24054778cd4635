"""Cut-out objects, and local edits made with them: add, remove, recolor, replace.

The ground truth is exact: source and target are the same photo with different objects composited at one spot.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os

import numpy as np
from PIL import Image as PILImage

from mgie_jax.data.ops import Image, luminance
from mgie_jax.paths import AnyPath, files, to_path

# Everyday objects with a one-word name that does not read as a color or as several things.
NAMES = frozenset(
    """airplane apricot avocado balloon banana basketball bear bee bison broccoli bus butterfly camel
    camera cow daffodil deer dog dolphin duck elephant flamingo fox frog giraffe goat gorilla guitar
    horse kangaroo kiwi koala lemon lightbulb lion mushroom orca ostrich owl pelican penguin pig
    pineapple pumpkin rabbit rooster seagull seahorse sheep squirrel strawberry teapot tiger tomato
    toolbox toucan truck trumpet turkey violin zebra""".split()
)
# Drawn rather than photographed.
_DRAWN = ("cartoon", "symbols", "clothes", "seasonal", "toys", "body_parts")
_LARGEST_STORED = 192
_MIN_STORED_SIDE = 44
_COVERAGE = (0.18, 0.9)

OBJECT_SIZE = 0.42  # longest side of an object, as a fraction of the photo's
# Place -> (in an instruction, in an expressive instruction, centre x, centre y).
PLACES = {
    "left": ("on the left", "near its left border", 0.25, 0.55),
    "right": ("on the right", "near its right border", 0.75, 0.55),
    "center": ("in the middle", "at its exact center", 0.5, 0.5),
    "top": ("at the top", "along its upper border", 0.5, 0.25),
    "bottom": ("at the bottom", "along its lower border", 0.5, 0.75),
    "top left": ("in the top left corner", "within its upper left quarter", 0.25, 0.25),
    "top right": ("in the top right corner", "within its upper right quarter", 0.75, 0.25),
    "bottom left": ("in the bottom left corner", "within its lower left quarter", 0.25, 0.75),
    "bottom right": ("in the bottom right corner", "within its lower right quarter", 0.75, 0.75),
}
COLORS = {
    "red": (0.9, 0.1, 0.1),
    "blue": (0.1, 0.25, 0.95),
    "green": (0.1, 0.75, 0.15),
    "yellow": (1.0, 0.88, 0.05),
    "purple": (0.6, 0.1, 0.8),
    "pink": (1.0, 0.4, 0.7),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Cutout:
    """An object on a transparent ground: its name and uint8 (h, w, 4), alpha not premultiplied."""

    name: str
    pixels: np.ndarray


@functools.lru_cache(maxsize=512)
def sprite_of(cutout: Cutout, photo_size: int) -> np.ndarray:
    """float32 (h, w, 4) in [0, 1], alpha premultiplied, fit for a photo of that many pixels a side."""
    image = PILImage.fromarray(cutout.pixels).convert("RGBa")  # premultiplied, so that edges keep no halo
    scale = OBJECT_SIZE * photo_size / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return np.asarray(image.resize(size, PILImage.Resampling.BICUBIC), np.float32) / 255


def load_cutouts(folder: str | os.PathLike) -> tuple[Cutout, ...]:
    """The well-behaved objects among a folder's captioned cut-outs, sorted by name, one per name.

    A cut-out is a PNG with transparency and a `.txt` of the same name, whose first line is an English
    caption such as "A great owl."; the caption's last word names it, and only those in `NAMES` are used. Of
    several with one name the most detailed wins.

    Raises:
      FileNotFoundError: the folder does not exist.
    """
    folder = to_path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    best: dict[str, tuple[int, AnyPath]] = {}
    there = files(folder)
    for stem in (name.removesuffix(".png") for name in there if name.endswith(".png")):
        path, caption = folder / f"{stem}.png", f"{stem}.txt"
        if any(part in _DRAWN for part in path.parts) or caption not in there:
            continue
        name = _name((folder / caption).read_bytes().decode("utf-8", errors="replace"))
        if name not in NAMES:
            continue
        with path.open("rb") as file, PILImage.open(file) as image:
            area, smallest = image.width * image.height, min(image.size)
        if smallest >= _MIN_STORED_SIDE and area > best.get(name, (0, path))[0]:
            best[name] = (area, path)
    cutouts = (Cutout(name, _pixels(path)) for name, (_, path) in sorted(best.items()))
    low, high = _COVERAGE
    return tuple(cutout for cutout in cutouts if low < (cutout.pixels[..., 3] / 255).mean() < high)


def place(image: Image, sprite: np.ndarray, x: float, y: float) -> tuple[Image, tuple[int, int, int, int]]:
    """Composite a premultiplied sprite onto an image, centred at (x, y) in [0, 1] and moved to fit inside.

    Returns:
      The new image, and the sprite's box as (top, left, bottom, right) pixels.

    Raises:
      ValueError: the sprite is larger than the image.
    """
    height, width = sprite.shape[:2]
    if height > image.shape[0] or width > image.shape[1]:
        raise ValueError(f"a sprite of {sprite.shape[:2]} does not fit an image of {image.shape[:2]}")
    top = int(np.clip(round(y * image.shape[0] - height / 2), 0, image.shape[0] - height))
    left = int(np.clip(round(x * image.shape[1] - width / 2), 0, image.shape[1] - width))
    result = image.copy()
    under = result[top : top + height, left : left + width]
    under *= 1 - sprite[..., 3:]
    under += sprite[..., :3]
    return np.clip(result, 0, 1, out=result), (top, left, top + height, left + width)


def recolored(sprite: np.ndarray, color: str) -> np.ndarray:
    """A premultiplied sprite in one of `COLORS`, with its own light and shade."""
    alpha = sprite[..., 3:]
    light = luminance(sprite[..., :3])[..., None]
    # A white or black object must take on color too: compress its shading into the middle.
    shade = np.float32(0.35) * alpha + np.float32(0.9) * light
    painted = shade * np.array(COLORS[color], np.float32) + np.float32(0.1) * light
    return np.concatenate([np.minimum(painted, alpha), alpha], axis=-1)


def _name(caption: str) -> str:
    words = caption.strip().split("\n")[0].strip(" .!").lower().split()
    return words[-1] if 0 < len(words) <= 4 else ""


def _pixels(path: AnyPath) -> np.ndarray:
    """The cut-out without its empty border, no larger than is ever needed."""
    image = PILImage.open(io.BytesIO(path.read_bytes())).convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox())
    image.thumbnail((_LARGEST_STORED, _LARGEST_STORED), PILImage.Resampling.LANCZOS)
    return np.asarray(image)
