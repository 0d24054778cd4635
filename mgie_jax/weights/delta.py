"""A published difference between two language models, added to the model it was taken from.

LLaVA and Vicuna were released as differences from LLaMA, whose licence forbade more. Semantics of LLaVA's
`apply_delta`: both in the delta's dtype, summed in it; rows and tensors that LLaMA has not are the delta's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mgie_jax.paths import AnyPath
from mgie_jax.weights.atomic import copy_file, new_folder, write_text
from mgie_jax.weights.files import TOKENIZER_FILES
from mgie_jax.weights.tensor import ModelDirError, Slices, Tensor, cast, is_floating, read_json
from mgie_jax.weights.tensors import write_tensors

_BUFFER = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"  # saved by transformers < 4.32, computed since
_OWN = r"model\.mm_projector\..+"  # what LLaMA has not
_EXTENDED = ("model.embed_tokens.weight", "lm_head.weight")  # what may have more rows than LLaMA's
_COMPANIONS = (*TOKENIZER_FILES, "added_tokens.json", "generation_config.json")


def apply_delta(base: Mapping[str, Tensor], delta: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The sum of a model and a delta, computed as it is read.

    Args:
      base: tensors of the model the delta was taken from.
      delta: tensors of the delta; the sum has their keys, shapes and dtypes.
      where: the two sources, for errors.

    Raises:
      ModelDirError: a key is on one side only (but for the projector), or two shapes do not go together.
    """
    base = {key: tensor for key, tensor in base.items() if not re.fullmatch(_BUFFER, key)}
    delta = {key: tensor for key, tensor in delta.items() if not re.fullmatch(_BUFFER, key)}
    lines = [f"  only in the base: {key} {tensor.shape}" for key, tensor in base.items() if key not in delta]
    sums = {}
    for key, tensor in delta.items():
        if key in base:
            if not _fits(key, base[key].shape, tensor.shape):
                lines.append(f"  shape: {key}: base {base[key].shape}, delta {tensor.shape}")
            if not (is_floating(base[key].dtype) and is_floating(tensor.dtype)):
                lines.append(f"  dtype: {key}: base {base[key].dtype}, delta {tensor.dtype}, expected floats")
            sums[key] = _sum(base[key], tensor)
        else:
            if not re.fullmatch(_OWN, key):
                lines.append(f"  only in the delta: {key} {tensor.shape}")
            sums[key] = tensor
    if lines:
        head = f"{where}: the delta was not taken from this base; give the LLaMA of its size, in transformers' layout"
        raise ModelDirError("\n".join([head, *lines]))
    return sums


def write(
    path: str | AnyPath,
    tensors: Mapping[str, Tensor],
    companions: AnyPath,
    dtype: Any = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes a folder as transformers would; it has its name once it is whole.

    Args:
      tensors: what `apply_delta` gives.
      companions: the delta's folder, whose configuration and tokenizer go with the sum.
      dtype: what floats are cast to; None keeps the delta's.
      progress: called with the bytes written after each tensor.

    Raises:
      ModelDirError: no config.json; there is something at `path` and `overwrite` is False; a number is too large.
    """
    fields = read_json(companions / "config.json")
    if dtype is not None:
        fields = {key: value for key, value in fields.items() if key != "dtype"} | {"torch_dtype": np.dtype(dtype).name}
    with new_folder(path, "config.json", overwrite) as new:
        write_tensors(new, "model", tensors.items(), dtype, progress=progress)
        for name in _COMPANIONS:
            if (companions / name).is_file():
                copy_file(companions / name, new / name)
        # Last, because it is what makes a folder a model.
        write_text(new / "config.json", json.dumps(fields, indent=2) + "\n")


def _fits(key: str, base: tuple[int, ...], delta: tuple[int, ...]) -> bool:
    return base == delta or (
        key in _EXTENDED and len(base) == len(delta) == 2 and base[0] <= delta[0] and base[1] == delta[1]
    )


def _sum(base: Tensor, delta: Tensor) -> Tensor:
    def read(index: Slices) -> np.ndarray:
        total = delta[index]
        # The base may end before these rows do, or before they begin.
        inside = (slice(min(p.start, size), min(p.stop, size)) for p, size in zip(index, base.shape, strict=True))
        part = cast(base[tuple(inside)], total.dtype, f"{base.path}: {base.key}")
        total[tuple(slice(size) for size in part.shape)] += part
        return total

    return replace(delta, read=read)
