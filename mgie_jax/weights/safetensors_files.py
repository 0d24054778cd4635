"""One safetensors file: a header checked to the byte, tensors read by slices and written by blocks.

The format (safetensors' README): 8 bytes with the header's length, little-endian; the header, JSON from key to
dtype, shape and the data's [start, end), padded with spaces; the data, without holes. Reading is by `preadv`,
not by mapping: pages of a mapped file count as this process's memory, and a file cut short while it is mapped
kills the process. Of a file in a bucket only the parts asked for are fetched (`bucket_files`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mgie_jax.paths import AnyPath, is_remote
from mgie_jax.weights.atomic import writing
from mgie_jax.weights.bucket_files import BucketFile
from mgie_jax.weights.tensor import ModelDirError, Slices, Tensor, cast, parse_object

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # the safetensors library's own limit
_LARGEST_DIM, _MOST_DIMS = 2**48, 32
BLOCK = 2**25  # bytes: what is cast, hashed and written at a time


class _File:
    """A file kept open, so that all that is read comes from one file even if the name gets another.

    Attributes:
      span: bytes, the most that is read at once of rows of which only some columns were asked for.
    """

    span = 2**20

    def __init__(self, path: Path):
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self):
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read(self, start: int, into: np.ndarray) -> None:
        """Fills the contiguous array `into` with the bytes from `start` on."""
        todo = memoryview(into.reshape(-1).view(np.uint8))
        while todo:
            try:
                count = os.preadv(self._descriptor, [todo], start)
            except OSError as error:
                raise ModelDirError(f"{self.path} cannot be read: {error.strerror}") from error
            if not count:
                raise ModelDirError(f"{self.path} was cut short while it was read; fetch it again")
            todo, start = todo[count:], start + count


def open_safetensors(path: AnyPath) -> dict[str, Tensor]:
    """Every tensor of a safetensors file; only the header is read.

    Raises:
      ModelDirError: no such file, it is cut short, or its header lies; the key is named where there is one.
    """
    try:
        file = BucketFile(path) if is_remote(path) else _File(path)
        size = file.size()
    except FileNotFoundError:
        raise ModelDirError(f"{path} is missing; copy or download it again") from None
    except OSError as error:
        raise ModelDirError(f"{path} cannot be read: {error.strerror or error}") from error

    def damaged(what: str) -> ModelDirError:
        return ModelDirError(f"{path} is not a whole safetensors file ({what}); it may be cut short: fetch it again")

    length = np.zeros(1, "<u8")
    if size < 8:
        raise damaged(f"it has {size} bytes")
    file.read(0, length)
    start = 8 + int(length[0])
    if start > min(size, _LONGEST_HEADER):
        raise damaged(f"its header claims {int(length[0])} bytes of {size}")
    header = np.empty(start - 8, np.uint8)
    file.read(8, header)
    try:
        fields = parse_object(header.tobytes().decode("utf-8"))
    except (ValueError, TypeError) as error:
        raise damaged(f"its header is no JSON object of distinct keys: {error}") from error
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged("its __metadata__ is not of strings")
    tensors, spans = {}, []
    for key, entry in fields.items():
        try:
            dtype, shape, (first, last) = _entry(key, entry)
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(f"{key!r}: {error}") from error
        spans.append((first, last, key))
        tensors[key] = Tensor(key, path, shape, dtype, partial(_read, file, start + first, shape, dtype))
    end = 0
    for first, last, key in sorted(spans):
        if first != end:
            raise damaged(f"{key!r} begins at {first} of the data, where {end} is expected")
        end = last
    if start + end != size:
        raise damaged(f"its tensors end at {start + end}, the file at {size}")
    return tensors


def _entry(key: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], tuple[int, int]]:
    if not key.isprintable():
        raise ValueError("no printable key")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError("expected dtype, shape and data_offsets")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES:
        raise ValueError(f"dtype {entry['dtype']!r} is not supported")
    dtype, shape, offsets = np.dtype(_DTYPES[entry["dtype"]]), entry["shape"], entry["data_offsets"]
    for numbers in (shape, offsets):
        # `type`, since a bool is an int.
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < _LARGEST_DIM for n in numbers):
            raise ValueError(f"{numbers} is no list of sizes")
    if len(offsets) != 2 or len(shape) > _MOST_DIMS:
        raise ValueError(f"data_offsets {offsets}, {len(shape)} dimensions")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{dtype} {shape} is not the {offsets[1] - offsets[0]} bytes of data_offsets {offsets}")
    return dtype, tuple(shape), (offsets[0], offsets[1])


def _read(file: _File | BucketFile, start: int, shape: tuple[int, ...], dtype: np.dtype, index: Slices) -> np.ndarray:
    """The part `index` of a tensor whose data begins at byte `start`; see `Tensor.read`."""
    out = np.empty([max(0, part.stop - part.start) for part in index], dtype)
    if out.size:
        _fill(file, start, shape, index, out)
    return out


def _fill(file: _File | BucketFile, start: int, shape: Sequence[int], index: Slices, out: np.ndarray) -> None:
    if not shape:
        file.read(start, out)
        return
    (rows, *inner), row_bytes = index, math.prod(shape[1:]) * out.dtype.itemsize
    start += rows.start * row_bytes
    if all(part == slice(0, size) for part, size in zip(inner, shape[1:], strict=True)):
        file.read(start, out)
    elif row_bytes <= file.span // 16:  # many short reads would cost more than what is read in vain
        step = file.span // row_bytes
        for i in range(0, len(out), step):
            span = np.empty((min(step, len(out) - i), *shape[1:]), out.dtype)
            file.read(start + i * row_bytes, span)
            out[i : i + step] = span[:, *inner]
    else:
        for i in range(len(out)):
            _fill(file, start + i * row_bytes, shape[1:], tuple(inner), out[i])


def header_bytes(tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> bytes:
    """The head of a file whose data are these tensors in this order.

    Raises:
      ModelDirError: a dtype the format does not have.
    """
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    end = 0
    for key, (dtype, shape) in tensors.items():
        if dtype not in _NAMES:
            raise ModelDirError(f"{key}: safetensors have no dtype {dtype}; choose another")
        start, end = end, end + math.prod(shape) * dtype.itemsize
        fields[key] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def blocks(tensor: Any, dtype: np.dtype | None = None, key: str = "") -> Iterator[np.ndarray]:
    """A tensor's data in order, some rows at a time; floats cast to `dtype` where one is given."""
    shape, itemsize = tuple(tensor.shape), np.dtype(tensor.dtype).itemsize
    rows = max(1, BLOCK // max(1, math.prod(shape[1:]) * itemsize))
    pieces = (tensor[i : i + rows] for i in range(0, shape[0], rows)) if shape else [tensor]
    for piece in pieces:
        piece = np.ascontiguousarray(piece)
        yield piece if dtype is None else cast(piece, dtype, key)


def write_safetensors(path: AnyPath, tensors: Mapping[str, tuple[Any, np.dtype]], progress: Any = None) -> str:
    """Writes {key: (tensor, dtype to write it in)} and returns the file's sha256.

    The file has its name once it is whole. One block (`BLOCK`) is in memory, and another being hashed.
    `progress`, where given, is called with the bytes written after each tensor.
    """
    # Larger items first, as the safetensors library does it: so each tensor starts at a multiple of its own.
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1][1].itemsize))
    digest, hashed = hashlib.sha256(), None
    with writing(path) as file, ThreadPoolExecutor(1) as hasher:
        head = header_bytes({key: (dtype, tuple(value.shape)) for key, (value, dtype) in tensors.items()})
        file.write(head)
        digest.update(head)
        for key, (value, dtype) in tensors.items():
            before = file.tell()
            for block in blocks(value, dtype, f"{path}: {key}"):
                raw = memoryview(block.reshape(-1).view(np.uint8))
                if hashed:
                    hashed.result()  # one at a time: their order is the file's
                hashed = hasher.submit(digest.update, raw)
                file.write(raw)
            if file.tell() - before != math.prod(value.shape) * dtype.itemsize:
                raise ModelDirError(f"{path}: {key} has not the data of its shape {tuple(value.shape)}")
            if progress:
                progress(file.tell() - before)
        if hashed:
            hashed.result()
    return digest.hexdigest()
