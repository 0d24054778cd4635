"""Global photo edits with exact, repeatable results: the ground truth of the generated editing pairs.

Every edit is a pure function `float32 (h, w, 3) in [0, 1] -> the same`, at one fixed, clearly visible
strength, so that the instruction alone decides the result. Lengths (blur radius, block size) are fractions
of the short side, so that an edit means the same at every resolution. `GLOBAL_OPS` names them all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

Image = np.ndarray  # float32 (h, w, 3) in [0, 1]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, on gamma-encoded values


def luminance(image: Image) -> np.ndarray:
    """(h, w): how light each pixel looks, in [0, 1]."""
    return image @ LUMA


def _rgb(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def _clip(image: np.ndarray) -> Image:
    return np.clip(image, 0.0, 1.0, out=image)


def _with_saturation(image: Image, factor: float) -> Image:
    gray = luminance(image)[..., None]
    return gray + np.float32(factor) * (image - gray)


@functools.lru_cache(maxsize=64)
def _blur_matrix(n: int, sigma: float) -> np.ndarray:
    """(n, n): multiplies a column of pixels by a Gaussian, renormalised at the borders.

    A dense product is several times faster here than a sliding window: images are small and BLAS is not.
    """
    at = np.arange(n, dtype=np.float64)
    weights = np.exp(-0.5 * ((at[:, None] - at[None, :]) / sigma) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def gaussian_blur(image: np.ndarray, radius: float) -> np.ndarray:
    """Blur (h, w) or (h, w, c) with a Gaussian whose sigma is `radius` times the short side."""
    sigma = radius * min(image.shape[:2])
    for _ in range(2):  # blur down the columns, then swap the axes; twice brings the axes back
        height, width = image.shape[:2]
        rows = _blur_matrix(height, sigma) @ image.reshape(height, -1)
        image = rows.reshape(height, width, *image.shape[2:]).swapaxes(0, 1)
    return np.ascontiguousarray(image)


@functools.lru_cache(maxsize=16)
def _radius_map(height: int, width: int) -> np.ndarray:
    """(h, w, 1): distance from the centre, 0 there and 1 in the corners."""
    y = (np.arange(height, dtype=np.float32) + 0.5) / height * 2 - 1
    x = (np.arange(width, dtype=np.float32) + 0.5) / width * 2 - 1
    return np.sqrt((y[:, None] ** 2 + x[None, :] ** 2) / 2)[..., None].astype(np.float32)


def _shade_corners(image: Image, amount: float) -> Image:
    return image * (1 - np.float32(amount) * np.clip((_radius_map(*image.shape[:2]) - 0.25) / 0.55, 0, 1) ** 1.5)


def brighter(image: Image) -> Image:
    """Lift everything, the dark parts most (gamma 0.5)."""
    return np.sqrt(image)


def darker(image: Image) -> Image:
    """Lower everything, the light parts least (gamma 2.2)."""
    return image ** np.float32(2.2)


def contrast_up(image: Image) -> Image:
    """Drive values away from mid-gray."""
    return _clip((image - 0.5) * np.float32(2.1) + np.float32(0.5))


def contrast_down(image: Image) -> Image:
    """Draw values towards mid-gray."""
    return (image - np.float32(0.5)) * np.float32(0.3) + np.float32(0.5)


def saturate(image: Image) -> Image:
    """Strengthen the colors."""
    return _clip(_with_saturation(image, 2.6))


def mute(image: Image) -> Image:
    """Weaken the colors, and leave some."""
    return _with_saturation(image, 0.35)


def black_and_white(image: Image) -> Image:
    """Luminance only."""
    return np.repeat(luminance(image)[..., None], 3, axis=-1)


def sepia(image: Image) -> Image:
    """Brown-toned monochrome."""
    return _clip(luminance(image)[..., None] * _rgb(1.12, 0.88, 0.62) + _rgb(0.03, 0.015, 0.0))


def warmer(image: Image) -> Image:
    """Towards orange light."""
    return _clip(image * _rgb(1.22, 0.94, 0.58))


def cooler(image: Image) -> Image:
    """Towards blue light."""
    return _clip(image * _rgb(0.62, 0.95, 1.3))


def _tint(image: Image, color: np.ndarray) -> Image:
    return np.float32(0.58) * image + np.float32(0.42) * color


def red_tint(image: Image) -> Image:
    """A red overlay."""
    return _tint(image, _rgb(0.9, 0.08, 0.1))


def green_tint(image: Image) -> Image:
    """A green overlay."""
    return _tint(image, _rgb(0.1, 0.75, 0.15))


def blue_tint(image: Image) -> Image:
    """A blue overlay."""
    return _tint(image, _rgb(0.08, 0.2, 0.95))


def purple_tint(image: Image) -> Image:
    """A purple overlay."""
    return _tint(image, _rgb(0.62, 0.1, 0.8))


def blur(image: Image) -> Image:
    """Out of focus."""
    return _clip(gaussian_blur(image, 1 / 28))


def sharpen(image: Image) -> Image:
    """Unsharp masking, strong enough to show at small sizes."""
    return _clip(image + np.float32(1.6) * (image - gaussian_blur(image, 1 / 70)))


def invert(image: Image) -> Image:
    """A negative."""
    return 1 - image


def vignette(image: Image) -> Image:
    """Dark corners and borders."""
    return _shade_corners(image, 0.9)


def night(image: Image) -> Image:
    """Day for night: dark, blue, little color."""
    return _with_saturation(image, 0.45).clip(0, 1) ** np.float32(1.4) * _rgb(0.26, 0.36, 0.62)


def old_photo(image: Image) -> Image:
    """An antique print: brown, pale, with shaded borders."""
    toned = luminance(image)[..., None] * _rgb(0.72, 0.6, 0.42) + _rgb(0.24, 0.2, 0.14)
    return _shade_corners(toned, 0.55)


def fog(image: Image) -> Image:
    """A pale gray veil, densest at the top, where the distance usually is."""
    height = image.shape[0]
    density = np.linspace(0.78, 0.42, height, dtype=np.float32)[:, None, None]
    return _with_saturation(image, 0.6) * (1 - density) + density * _rgb(0.84, 0.86, 0.88)


def posterize(image: Image) -> Image:
    """Eight colors: each channel all or nothing."""
    return (image >= 0.5).astype(np.float32)


def solarize(image: Image) -> Image:
    """Reverse the light half of the tones (the Sabattier effect)."""
    return np.minimum(image, 1 - image) * np.float32(1.6)


def sunset(image: Image) -> Image:
    """Golden hour: orange light, strongest at the top."""
    height = image.shape[0]
    glow = np.linspace(0.55, 0.2, height, dtype=np.float32)[:, None, None]
    return _clip(image * _rgb(1.1, 0.78, 0.5) * (1 - glow) + glow * _rgb(1.0, 0.58, 0.18))


def cinematic(image: Image) -> Image:
    """Teal shadows, orange highlights."""
    light = luminance(image)[..., None]
    light = light * light * (3 - 2 * light)
    grade = (1 - light) * _rgb(0.0, 0.26, 0.32) + light * _rgb(1.0, 0.66, 0.36)
    return _clip(np.float32(0.45) * image + np.float32(0.6) * grade - np.float32(0.02))


def faded(image: Image) -> Image:
    """Film left in the sun: raised blacks with a green cast, lowered whites, weak color."""
    return _with_saturation(image, 0.55) * _rgb(0.52, 0.5, 0.46) + _rgb(0.33, 0.37, 0.32)


def pixelate(image: Image) -> Image:
    """Sixteen blocks along the short side, each in its mean color."""
    height, width = image.shape[:2]
    block = max(1, round(min(height, width) / 16))
    rows, columns = np.arange(0, height, block), np.arange(0, width, block)
    sums = np.add.reduceat(np.add.reduceat(image, rows, axis=0), columns, axis=1)
    sizes = np.diff(np.append(rows, height))[:, None] * np.diff(np.append(columns, width))[None, :]
    blocks = sums / sizes[..., None].astype(np.float32)
    return blocks.repeat(block, axis=0)[:height].repeat(block, axis=1)[:, :width]


def sketch(image: Image) -> Image:
    """Pencil on paper: luminance divided by its own blur, so that only edges stay dark."""
    gray = luminance(image) + np.float32(0.02)
    lines = np.clip(gray / gaussian_blur(gray, 1 / 40), 0, 1) ** np.float32(2.5)
    return np.repeat(lines[..., None], 3, axis=-1)


GLOBAL_OPS: dict[str, Callable[[Image], Image]] = {
    op.__name__: op
    for op in (
        brighter, darker, contrast_up, contrast_down, saturate, mute, black_and_white, sepia, warmer, cooler,
        red_tint, green_tint, blue_tint, purple_tint, blur, sharpen, invert, vignette, night, old_photo, fog,
        posterize, solarize, sunset, cinematic, faded, pixelate, sketch,
    )
}  # fmt: skip
