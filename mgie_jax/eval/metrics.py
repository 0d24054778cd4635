"""Distances between photos, on float arrays in [0, 1]."""

import numpy as np
from jaxtyping import Float, UInt8


def unit(photo: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    """8-bit values as float32 in [0, 1]."""
    return photo.astype(np.float32) / 255.0


def l1(a: Float[np.ndarray, "h w 3"], b: Float[np.ndarray, "h w 3"]) -> float:
    """Mean absolute difference, 0 (same) to 1."""
    return float(np.abs(a - b).mean())


def psnr(a: Float[np.ndarray, "h w 3"], b: Float[np.ndarray, "h w 3"]) -> float:
    """Peak signal-to-noise ratio in dB, at most 100 (equal photos)."""
    return float(-10.0 * np.log10(max(np.square(a - b, dtype=np.float64).mean(), 1e-10)))
