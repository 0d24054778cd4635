"""Weights files, whole or sharded, in any of the ecosystem's layouts: opened lazily, written a tensor at a time."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from mgie_jax.paths import AnyPath, to_path
from mgie_jax.weights.atomic import write_text
from mgie_jax.weights.safetensors_files import open_safetensors, write_safetensors
from mgie_jax.weights.tensor import ModelDirError, Tensor, is_floating, read_json
from mgie_jax.weights.torch_files import open_pickled

__all__ = ["SHARD_BYTES", "ModelDirError", "Tensor", "open_tensors", "read_json", "read_tensors", "write_tensors"]

SHARD_BYTES = 5 * 10**9
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Where a folder holds several of them the first is taken: they are copies of one another.
_KNOWN = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")


def _open_file(path: AnyPath) -> dict[str, Tensor]:
    return open_pickled(path) if path.suffix in PICKLES else open_safetensors(path)


def read_tensors(folder: str | AnyPath, stem: str) -> dict[str, Tensor]:
    """Every tensor of `folder`: of `stem`.safetensors or of the shards its index names. None is read yet.

    Raises:
      ModelDirError: a file is missing, cut short or damaged, or the index disagrees with the shards.
    """
    folder = to_path(folder)
    index = folder / f"{stem}.safetensors.index.json"
    return _open_index(index) if index.exists() else open_safetensors(folder / f"{stem}.safetensors")


def open_tensors(path: str | AnyPath) -> dict[str, Tensor]:
    """Every tensor of whatever is at `path`; none is read yet.

    Args:
      path: one .safetensors, .bin, .pt, .pth or .ckpt file, or a folder: with an index (`*.index.json`); or with
        one of the files that transformers and diffusers write; or with a full set of numbered shards; or with a
        single weights file of any name. safetensors come before PyTorch's own. In pickled files an outer
        {"state_dict": ...} is unwrapped, and what is no tensor left out.

    Raises:
      ModelDirError: nothing there, or more than one thing it could be; a file missing, damaged, or one that would
        run code; tensors missing, twice, or elsewhere than the index says.
    """
    path = to_path(path)
    if not path.is_dir():
        if path.suffix not in (".safetensors", *PICKLES):
            what = "is no weights file" if path.exists() else "is missing"
            raise ModelDirError(f"{path} {what}; give a folder, or a .safetensors, {', '.join(PICKLES)} file")
        return _open_file(path)
    for kind in (".safetensors", ".bin"):
        indexes = sorted(path.glob(f"*{kind}.index.json"))
        if len(indexes) > 1:
            raise ModelDirError(f"{path} has several indexes ({', '.join(i.name for i in indexes)}); keep one")
        if indexes:
            return _open_index(indexes[0])
        for name in _KNOWN:
            if name.endswith(kind) and (path / name).is_file():
                return _open_file(path / name)
        if shards := _numbered_shards(path, kind):
            return _join([(name, _open_file(path / name)) for name in shards], path)
    files = sorted(file for file in path.iterdir() if file.suffix in (".safetensors", *PICKLES))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise ModelDirError(f"{path}: cannot tell which file holds the weights (found {found}); give the file itself")
    return _open_file(files[0])


def _numbered_shards(folder: AnyPath, kind: str) -> list[str]:
    """Names of the one full set of shards in `folder`; none where it has none."""
    sets: dict[tuple[str, str], set[int]] = defaultdict(set)
    for file in folder.iterdir():
        if (found := _SHARD.fullmatch(file.name)) and found[4] == kind:
            sets[found[1], found[3]].add(int(found[2]))
    if len(sets) > 1:
        names = ", ".join(f"{stem}-*-of-{count}{kind}" for stem, count in sorted(sets))
        raise ModelDirError(f"{folder} has several sets of shards ({names}); keep one")
    for (stem, count), numbers in sets.items():
        names = [f"{stem}-{i + 1:05}-of-{count}{kind}" for i in range(min(int(count), 10**4))]
        if lost := [name for name in names if not (folder / name).is_file()]:
            raise ModelDirError(f"{folder} lacks the shards {', '.join(lost[:9])}; copy or download them")
        if len(numbers) != len(names):
            raise ModelDirError(f"{folder} has shards beyond {stem}-{count}-of-{count}{kind}; remove them")
        return names
    return []


def _join(shards: list[tuple[str, dict[str, Tensor]]], where: AnyPath) -> dict[str, Tensor]:
    joined: dict[str, Tensor] = {}
    for name, tensors in shards:
        if twice := sorted(tensors.keys() & joined.keys()):
            both = f"{joined[twice[0]].path.name} and {name}"
            raise ModelDirError(f"{where}: {both} both hold {', '.join(twice[:9])}; they are of different models")
        joined |= tensors
    return joined


def _open_index(index: AnyPath) -> dict[str, Tensor]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise ModelDirError(f"{index} has no weight_map from keys to file names")
    names = sorted(set(where.values()))
    if stray := [name for name in names if PurePosixPath(name).name != name or name == ".." or not name.isprintable()]:
        raise ModelDirError(f"{index} names files outside its folder: {', '.join(map(repr, stray))}")
    kind = ".safetensors" if index.name.endswith(".safetensors.index.json") else ".bin"
    if stray := [name for name in names if not name.endswith(kind)]:
        raise ModelDirError(f"{index} names files that are not {kind}: {', '.join(stray)}")
    joined = _join([(name, _open_file(index.parent / name)) for name in names], index)
    if lost := [f"{key!r} ({name})" for key, name in where.items() if key not in joined]:
        raise ModelDirError(f"{index} names tensors that are not in their files: {', '.join(lost)}")
    if stray := [f"{key} ({t.path.name})" for key, t in joined.items() if key not in where]:
        raise ModelDirError(f"{index} does not name all tensors of its files, it lacks: {', '.join(stray)}")
    if wrong := [f"{key} (in {t.path.name})" for key, t in joined.items() if t.path.name != where[key]]:
        raise ModelDirError(f"{index} names the wrong files for: {', '.join(wrong)}")
    return joined


def write_tensors(
    folder: str | AnyPath,
    stem: str,
    tensors: Iterable[tuple[str, Any]],
    dtype: Any = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int], None] | None = None,
) -> dict[str, str]:
    """Writes `stem`.safetensors or, beyond `shard_bytes`, numbered shards and then their index.

    Files are named as transformers and diffusers name them, and each has its name once it is whole. A tensor is
    read when it is written and by blocks of rows, so that with lazy tensors less than one is in memory.

    Args:
      folder: where to; it must hold no weights of this name.
      stem: the name's beginning.
      tensors: (key, `Tensor`, array, or whatever else has shape, dtype and slices). They are listed before the first
        is read, since a file's header says how large each is.
      dtype: what floats are cast to; None to keep each tensor's own.
      shard_bytes: the size beyond which another file is begun.
      progress: called with the bytes written after each tensor.

    Returns:
      {file name: sha256}, of every file written.

    Raises:
      ModelDirError: a key twice, a dtype that cannot be written, a number too large for `dtype`, weights there.
    """
    folder, shards, size = to_path(folder), [{}], 0
    if there := sorted(file.name for file in folder.glob(f"{stem}*.safetensors*")):
        raise ModelDirError(f"{folder} holds weights already ({', '.join(there[:9])}); choose another folder")
    seen: set[str] = set()
    for key, tensor in tensors:
        if key in seen:
            raise ModelDirError(f"{folder / stem}: {key} is there twice; a file has one tensor of a name")
        seen.add(key)
        kept = np.dtype(tensor.dtype).newbyteorder("=")
        target = np.dtype(dtype) if dtype is not None and is_floating(kept) else kept
        nbytes = _nbytes(tensor, target)
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = (tensor, target)
        size += nbytes
    if len(shards) == 1:
        name = f"{stem}.safetensors"
        return {name: write_safetensors(folder / name, shards[0], progress)}
    names = [f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    sums = {name: write_safetensors(folder / name, shard, progress) for name, shard in zip(names, shards, strict=True)}
    where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    total = sum(_nbytes(*item) for shard in shards for item in shard.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2) + "\n"
    index = f"{stem}.safetensors.index.json"
    return sums | {index: write_text(folder / index, text)}


def _nbytes(tensor: Any, dtype: np.dtype) -> int:
    return math.prod(tensor.shape) * dtype.itemsize
