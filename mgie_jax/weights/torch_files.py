"""PyTorch's `.bin`, `.pt`, `.pth` and `.ckpt` files. The only module of the package that imports torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mgie_jax.paths import AnyPath, local, to_path
from mgie_jax.weights.atomic import writing
from mgie_jax.weights.tensor import ModelDirError, Slices, Tensor

_MAPPED_BYTES = 2**28  # what may be read of a mapped file before it is mapped anew
# Floats that NumPy lacks, by torch's name: ml_dtypes' type, and one of torch's that NumPy has, of the same size.
_BITS = {
    "bfloat16": (ml_dtypes.bfloat16, "int16"),
    "float8_e4m3fn": (ml_dtypes.float8_e4m3fn, "uint8"),
    "float8_e5m2": (ml_dtypes.float8_e5m2, "uint8"),
}


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ModelDirError("reading and writing PyTorch's own files needs torch: pip install 'mgie_jax[torch]'") from (
            error
        )
    return torch


class _Pickle:
    """A checkpoint, mapped. What was read of a mapping counts as memory until all of it is unmapped."""

    def __init__(self, path: Path):
        self.path, self.touched, self.tensors = path, 0, _load(path)

    def read(self, key: str, index: Slices) -> np.ndarray:
        tensor = self.tensors[key]
        if self.touched + tensor.nbytes > _MAPPED_BYTES and self.touched:
            del tensor
            self.tensors = {}
            self.tensors, self.touched = _load(self.path), 0
            if key not in self.tensors:
                raise ModelDirError(f"{self.path} changed while it was read: {key} is gone; try again")
            tensor = self.tensors[key]
        self.touched += tensor.nbytes
        dtype, bits = _dtype(tensor)
        part = tensor.detach()[index].contiguous()
        # Bits are reinterpreted once they are NumPy's: its arrays, unlike torch's, know ml_dtypes.
        return np.array((part.view(getattr(_torch(), bits)) if bits else part).numpy()).view(dtype)


def _dtype(tensor: Any) -> tuple[np.dtype, str | None]:
    name = str(tensor.dtype).removeprefix("torch.")
    if name in _BITS:
        dtype, bits = _BITS[name]
        return np.dtype(dtype), bits
    return np.dtype(name), None


def _load(path: Path) -> dict[str, Any]:
    """{key: torch tensor}, mapped where the file allows it; a "state_dict" within is unwrapped."""
    torch = _torch()
    try:
        content = _unpickle(torch, path)
    except FileNotFoundError:
        raise ModelDirError(f"{path} is missing; copy or download it again") from None
    except Exception as error:  # damaged archives and pickles raise almost anything
        if isinstance(error, ModelDirError | MemoryError):
            raise
        message = str(error)
        if found := re.search(r"GLOBAL (\S+)|(?:class|function|global) ([\w.]+) (?:is not|was not)", message):
            raise ModelDirError(
                f"{path} is refused: it would run {found.group(1) or found.group(2)} to be read; where you trust it, "
                "save its tensors alone, with torch.save or as safetensors"
            ) from error
        told = re.search(r"WeightsUnpickler error: (.+)", message) or re.search(r"(.+)", message)
        what = f"{type(error).__name__}: {told[1][:200]}" if told else type(error).__name__
        raise ModelDirError(
            f"{path} is not a whole PyTorch file ({what}); it may be cut short: fetch it again"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise ModelDirError(f"{path} holds a {type(content).__name__}, expected a dict from keys to tensors")
    return {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}


def _unpickle(torch: Any, path: Path) -> Any:
    with open(path, "rb") as file:
        archive = file.read(4) == b"PK\x03\x04"  # the files of torch < 1.6 are none, and cannot be mapped
    return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)


def open_pickled(path: str | AnyPath) -> dict[str, Tensor]:
    """Every tensor of a PyTorch checkpoint; entries that are none are left out. Nothing in it is run.

    Raises:
      ModelDirError: torch is not installed; the file is missing, damaged or of torch < 1.6 and larger than memory;
        it would run code to be read; or it holds no tensors.
      PathError: it is in a bucket.
    """
    path = local(path, "torch reads its own files only from disk")
    pickle = _Pickle(path)
    tensors = {}
    for key, value in pickle.tensors.items():
        name = str(key)
        try:
            dtype = _dtype(value)[0]
        except TypeError as error:
            raise ModelDirError(f"{path}: {name} is {value.dtype}, which has no equal here") from error
        if value.layout != _torch().strided or value.is_quantized or value.is_meta:
            raise ModelDirError(f"{path}: {name} is no dense tensor; save it as one")
        if value.nbytes > value.untyped_storage().nbytes():
            raise ModelDirError(f"{path}: {name} {tuple(value.shape)} is larger than its data; save a copy (.clone())")
        tensors[name] = Tensor(name, path, tuple(value.shape), dtype, partial(pickle.read, key))
    if not tensors:
        raise ModelDirError(f"{path} holds no tensors; give a file with a state dict")
    return tensors


def save_pickled(path: str | AnyPath, tensors: Mapping[str, Any]) -> None:
    """Writes {key: array} as torch.save would a state dict; the file has its name once it is whole.

    All of it is in memory meanwhile: torch.save needs it so.

    Raises:
      ModelDirError: torch is not installed, or lacks a dtype.
    """
    torch, path = _torch(), to_path(path)
    of_numpy = {np.dtype(dtype): (name, bits) for name, (dtype, bits) in _BITS.items()}
    state = {}
    for key, value in tensors.items():
        array = np.array(value, order="C")
        name, bits = of_numpy.get(array.dtype, (None, None))
        try:
            flat = torch.from_numpy(array.reshape(-1).view(bits) if bits else array.reshape(-1))
        except TypeError as error:
            raise ModelDirError(f"{path}: {key}: torch has no dtype {array.dtype}") from error
        state[key] = (flat.view(getattr(torch, name)) if name else flat).reshape(array.shape)
    with writing(path) as file:
        torch.save(state, file)
