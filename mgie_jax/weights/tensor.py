"""A tensor that is still in its file, and the one error of everything that reads or writes weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np

from mgie_jax.paths import AnyPath

Slices = tuple[slice, ...]


class ModelDirError(ValueError):
    """Weights that cannot be read or written; the message names the file and what to do."""


@dataclass(frozen=True)
class Tensor:
    """A tensor still in its file: `np.asarray(t)` reads it whole, `t[1:3, :, 5:]` only that part.

    Attributes:
      key: its name there.
      path: the file.
      shape: its shape, as PyTorch has it.
      dtype: its dtype, bit for bit; bfloat16 and the float8s are ml_dtypes'.
      read: from one slice a dimension (step 1, within the shape) to a new C-contiguous array of that part.
    """

    key: str
    path: AnyPath
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Slices], np.ndarray] = field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, index: slice | Slices) -> np.ndarray:
        return self.read(whole_slices(index, self.shape))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self[()]
        return array if dtype is None else array.astype(dtype, copy=False)


def whole_slices(index: slice | Slices, shape: Sequence[int]) -> Slices:
    """One slice(start, stop) for each dimension of `shape`.

    Raises:
      IndexError: anything in `index` is no slice of step 1, or there are more than dimensions.
    """
    index = index if isinstance(index, tuple) else (index,)
    if len(index) > len(shape) or not all(isinstance(part, slice) and part.step in (None, 1) for part in index):
        raise IndexError(f"{index} is not a slice of step 1 for each of the {len(shape)} dimensions")
    index += (slice(None),) * (len(shape) - len(index))
    return tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))


def last_rows(tensor: Any, count: int) -> Any:
    """The last `count` rows of a `Tensor`, still in its file, or of an array."""
    first = tensor.shape[0] - count
    if not isinstance(tensor, Tensor):
        return tensor[first:]

    def read(index: Slices) -> np.ndarray:
        rows, *rest = index
        return tensor.read((slice(rows.start + first, rows.stop + first), *rest))

    return replace(tensor, shape=(count, *tensor.shape[1:]), read=read)


def is_floating(dtype: Any) -> bool:
    """Whether `dtype` holds real numbers, ml_dtypes' included (NumPy takes those for opaque bytes)."""
    try:
        ml_dtypes.finfo(dtype)
    except ValueError:
        return False
    return not np.issubdtype(dtype, np.complexfloating)


def narrows(dtype: Any, target: Any) -> bool:
    """Whether floats of `dtype` can be too large for `target`."""
    return float(ml_dtypes.finfo(target).max) < float(ml_dtypes.finfo(dtype).max)


def cast(array: np.ndarray, dtype: Any, key: str) -> np.ndarray:
    """`array` in another floating dtype; itself where it has that dtype or holds no floats.

    Raises:
      ModelDirError: a finite value would become infinite (or NaN: float8_e4m3fn has no infinity).
    """
    dtype = np.dtype(dtype)
    if array.dtype == dtype or not is_floating(array.dtype):
        return array
    with np.errstate(over="ignore"):
        out = array.astype(dtype)
    if narrows(array.dtype, dtype):
        lost = np.isfinite(array) & ~np.isfinite(out)
        if lost.any():
            largest = np.abs(array[lost].astype(np.float64)).max()
            raise ModelDirError(f"{key}: {largest:g} is beyond {dtype.name}; choose bfloat16 or float32")
    return out


def read_json(path: AnyPath) -> dict:
    """The object in a JSON file.

    Raises:
      ModelDirError: no such file, or it holds no JSON object.
    """
    try:
        return parse_object(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelDirError(f"{path} is missing; a model directory must hold it") from None
    except OSError as error:
        raise ModelDirError(f"{path} cannot be read: {error.strerror or error}") from error
    except TypeError as error:
        raise ModelDirError(f"{path} must hold a JSON object, found {error}") from error
    except ValueError as error:
        raise ModelDirError(f"{path} is not valid JSON ({error}); write or download it anew") from error


def parse_object(text: str | bytes) -> dict:
    """The object in JSON text, in which no name may appear twice.

    Raises:
      ValueError: it is not JSON, nests too deeply, or has a name twice.
      TypeError: it is JSON of another type, which the message names.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} appears twice")
        return fields

    def not_json(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=not_json)
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    if not isinstance(value, dict):
        raise TypeError(type(value).__name__)
    return value
