"""The average of models of one kind, which is often better than each (model soups, arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mgie_jax.paths import AnyPath
from mgie_jax.weights.files import TABLES, part_tensors
from mgie_jax.weights.model_config import load_config
from mgie_jax.weights.tensor import ModelDirError, Slices, Tensor, cast, is_floating


def average(models: Sequence[AnyPath]) -> dict[str, dict[str, Tensor]]:
    """The tensors of the mean of model directories by part, computed as they are read; dtypes are the first one's.

    Raises:
      ModelDirError: fewer than two; one is no whole model; they are of different sizes, or a tensor has no mean.
    """
    if len(models) < 2:
        raise ModelDirError("an average is of two model directories or more")
    first, config = models[0], load_config(models[0])
    for other in models[1:]:
        if load_config(other) != config:
            raise ModelDirError(f"{first} and {other} have different sizes or settings; only models of one kind mix")
    parts = {}
    for part in TABLES:
        found = [part_tensors(model, part) for model in models]
        parts[part] = {key: _mean([_get(tensors, key, part) for tensors in found]) for key in found[0]}
    return parts


def _get(tensors: Mapping[str, Tensor], key: str, part: str) -> Tensor:
    if key not in tensors:
        raise ModelDirError(f"{part}: only some of the models have {key}; save them anew in one layout")
    return tensors[key]


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    like = tensors[0]
    for tensor in tensors:
        if tensor.shape != like.shape or not is_floating(tensor.dtype):
            raise ModelDirError(
                f"{tensor.path}: {tensor.key} is {tensor.dtype} {tensor.shape}, expected floats {like.shape}"
            )

    def read(index: Slices) -> np.ndarray:
        total = sum(tensor.read(index).astype(np.float64) for tensor in tensors)
        return cast((total / len(tensors)).astype(np.float32), like.dtype, like.key)

    return replace(like, read=read)
