"""Tensors of every dtype and any bits, and what it takes to compare them."""

import ml_dtypes
import numpy as np
import torch

DTYPES = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32", "int8",
          "uint8", "bool"]  # fmt: skip


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def random_bits(name, shape=(5, 3, 4)):
    """Any bits at all, NaNs and subnormals among them."""
    raw = np.random.default_rng(0).integers(0, 256, (*shape, dtype_of(name).itemsize), np.uint8)
    return (raw & 1).astype(bool)[..., 0] if name == "bool" else raw.view(dtype_of(name))[..., 0]


def every_dtype():
    """Every dtype, in an order that is not of their alignment, a scalar and an empty tensor among them."""
    named = {f"{name}.weight": random_bits(name) for name in reversed(DTYPES)}
    return named | {"scalar": np.float32([[7]])[0, 0, ...], "empty": np.zeros((0, 3), np.float16)}


def assert_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


def bits_of(tensor):
    """A torch tensor as bytes."""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
