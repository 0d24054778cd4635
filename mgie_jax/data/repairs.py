"""Corrections whose result depends on the photo, for instructions such as "fix the exposure".

`degrade` spoils a photo at random; a repair then follows from the spoiled photo's measured statistics
alone, so that its right answer can be read off the picture: nothing of the degradation is remembered.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mgie_jax.data.ops import Image, luminance
from mgie_jax.data.photo_stats import measure

TARGET_LUMINANCE = 0.48
TARGET_CONTRAST = 0.27
TARGET_SATURATION = 0.34


def _exposed(image: Image, strength: float = 1.0) -> Image:
    """The gamma that takes the mean luminance to `TARGET_LUMINANCE`, or part of the way."""
    mean = float(np.clip(measure(image).luminance, 0.02, 0.98))
    gamma = float(np.clip(np.log(TARGET_LUMINANCE) / np.log(mean), 0.3, 3.0)) ** strength
    return image ** np.float32(gamma)


def _balanced(image: Image, strength: float) -> Image:
    """Gray-world white balance (Buchsbaum 1980): part of the way to equal channel means."""
    channels = np.maximum(np.asarray(measure(image).channels, np.float32), 0.02)
    gains = np.clip((channels.mean() / channels) ** np.float32(strength), 0.5, 2.2)
    return np.clip(image * gains, 0, 1)


def fix_exposure(image: Image) -> Image:
    """Neither too dark nor too bright."""
    return _exposed(image)


def fix_white_balance(image: Image) -> Image:
    """Without a color cast."""
    return _balanced(image, 0.85)


def make_pop(image: Image) -> Image:
    """Contrast and saturation raised: the flatter and duller the photo, the more."""
    stats = measure(image)
    contrast = np.clip(TARGET_CONTRAST / max(stats.contrast, 0.02), 1.15, 2.5)
    color = np.clip(TARGET_SATURATION / max(stats.saturation * contrast, 0.02), 1.25, 3.0)
    image = (image - np.float32(stats.luminance)) * np.float32(contrast) + np.float32(stats.luminance)
    gray = luminance(image)[..., None]
    return np.clip(gray + (image - gray) * np.float32(color), 0, 1)


def look_professional(image: Image) -> Image:
    """Retouched: white balance, then exposure, then a gentle S-curve."""
    image = _exposed(_balanced(image, 0.7), 0.9)
    curve = image * image * (3 - 2 * image)
    return image + np.float32(0.7) * (curve - image)


def fix_lighting(image: Image) -> Image:
    """The full tonal range used (1st to 99th percentile), then the mean brought to the middle."""
    low, high = np.quantile(luminance(image[::2, ::2]), (0.01, 0.99)).astype(np.float32)
    return _exposed(np.clip((image - low) / max(high - low, np.float32(0.1)), 0, 1))


REPAIRS: dict[str, Callable[[Image], Image]] = {
    op.__name__: op for op in (fix_exposure, fix_white_balance, make_pop, look_professional, fix_lighting)
}

_FAULTS = {
    "fix_exposure": ("dark", "bright"),
    "fix_white_balance": ("cast",),
    "make_pop": ("flat", "dull"),
    "look_professional": ("dark", "bright", "cast", "flat"),
    "fix_lighting": ("dark", "bright", "flat"),
}


def degrade(image: Image, kind: str, rng: np.random.Generator) -> Image:
    """Spoil a photo in a way that the repair `kind` answers, by a random amount."""
    fault = _FAULTS[kind][rng.integers(len(_FAULTS[kind]))]
    if fault == "dark":
        return image ** np.float32(rng.uniform(1.9, 3.0))
    if fault == "bright":
        return image ** np.float32(rng.uniform(0.3, 0.5))
    if fault == "flat":
        return (image - np.float32(0.5)) * np.float32(rng.uniform(0.25, 0.5)) + np.float32(rng.uniform(0.4, 0.6))
    if fault == "dull":
        gray = luminance(image)[..., None]
        return gray + (image - gray) * np.float32(rng.uniform(0.15, 0.5))
    warm, green = rng.uniform(0.2, 0.45) * rng.choice((-1, 1)), rng.uniform(-0.2, 0.2)
    return np.clip(image * np.array([1 + warm, 1 + green, 1 - warm], np.float32), 0, 1)
