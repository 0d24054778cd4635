"""safetensors files, whole or sharded, written and read a tensor at a time (the Hugging Face layout)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

SHARD_BYTES = 5 * 10**9


class ModelDirError(ValueError):
    """A model directory that cannot be read or written; the message names the file and what to do."""


def read_json(path: Path) -> dict:
    """The object in a JSON file.

    Raises:
      ModelDirError: no such file, or it holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelDirError(f"{path} is missing; a model directory must hold it") from None
    except OSError as error:
        raise ModelDirError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelDirError(f"{path} is not valid JSON ({error}); write or download it anew") from error
    if not isinstance(value, dict):
        raise ModelDirError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value


@dataclass(frozen=True)
class LazyTensor:
    """A tensor still in its file; `np.asarray` reads it."""

    file: Any
    key: str
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.file.get_slice(self.key).get_shape())

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        try:
            array = self.file.get_tensor(self.key)
        except (SafetensorError, TypeError, AttributeError) as error:
            kind = self.file.get_slice(self.key).get_dtype()
            raise ModelDirError(f"{self.path}: {self.key} ({kind}) cannot be read: {error}") from error
        return array if dtype is None else array.astype(dtype)


def _open(path: Path) -> dict[str, LazyTensor]:
    try:
        file = safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise ModelDirError(f"{path} is missing; copy or download it again") from None
    except (SafetensorError, OSError) as error:
        raise ModelDirError(
            f"{path} is not a whole safetensors file ({error}); it may be cut short: fetch it again"
        ) from error
    return {key: LazyTensor(file, key, path) for key in file.keys()}


def read_tensors(folder: Path, stem: str) -> dict[str, LazyTensor]:
    """Every tensor of `folder`: of `stem`.safetensors or of the shards its index names. None is read yet.

    Raises:
      ModelDirError: a file is missing, cut short or damaged, or the index disagrees with the shards.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if not index.exists():
        return _open(folder / f"{stem}.safetensors")
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise ModelDirError(f"{index} has no weight_map from keys to file names")
    if stray := sorted({name for name in where.values() if Path(name).name != name}):
        raise ModelDirError(f"{index} names files outside its folder: {', '.join(stray)}")
    tensors: dict[str, LazyTensor] = {}
    for name in sorted(set(where.values())):
        tensors |= _open(folder / name)
    if lost := [f"{key} ({where[key]})" for key in where if key not in tensors]:
        raise ModelDirError(f"{index} names tensors that are not in their files: {', '.join(lost)}")
    return tensors


def _shards(tensors: Iterable[tuple[str, np.ndarray]], limit: int) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    size = 0
    for key, tensor in tensors:
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[key] = tensor
        size += tensor.nbytes
    yield shard


def write_tensors(
    folder: Path, stem: str, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes `stem`.safetensors or, beyond `shard_bytes`, numbered shards and their index.

    No more than one shard is in memory. Files are named as transformers and diffusers name them.
    """
    shards: list[tuple[Path, Mapping[str, int]]] = []
    for shard in _shards(tensors, shard_bytes):
        path = folder / f"{stem}-{len(shards) + 1:05}.safetensors"
        save_file(shard, path, metadata={"format": "pt"})
        shards.append((path, {key: tensor.nbytes for key, tensor in shard.items()}))
    if len(shards) == 1:
        shards[0][0].rename(folder / f"{stem}.safetensors")
        return
    where, total = {}, 0
    for i, (path, sizes) in enumerate(shards):
        name = f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors"
        path.rename(folder / name)
        where |= dict.fromkeys(sizes, name)
        total += sum(sizes.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
