"""Arrays that are spread over the hosts, handed to process 0 one tensor at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

_END = -1  # in place of an array's number, or a layer's: none


@dataclass(frozen=True)
class Whole:
    """An array in one piece, gathered when it is asked for: `np.asarray(a)` all of it, `a[3, ...]` that layer alone."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fetch: Callable[[int], np.ndarray]

    def __getitem__(self, index: tuple[int, Any]) -> np.ndarray:
        return self.fetch(index[0])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.fetch(_END), dtype)


def hand_over(tree: PyTree, use: Callable[[PyTree], None]) -> None:
    """Process 0 calls `use` with the tree's arrays as `Whole`s; the others, which must call this too, help it to them.

    Beside its own shards no device or host holds more than one tensor, or layer of stacked ones: the last asked for.
    `use` may ask in any order; whole layers one after the other are cheapest.
    """
    arrays, structure = jax.tree.flatten(tree)
    if jax.process_index():
        while (wanted := _told((_END, _END)))[0] != _END:
            jax.block_until_ready(_gathered(arrays[wanted[0]], wanted[1]))
        return
    last: dict[tuple[int, int], np.ndarray] = {}

    def fetch(number: int, layer: int) -> np.ndarray:
        if (number, layer) not in last:
            last.clear()
            _told((number, layer))
            last[number, layer] = np.asarray(_gathered(arrays[number], layer).addressable_data(0))
        return last[number, layer]

    def whole(number: int, x: jax.Array) -> Whole:
        return Whole(tuple(x.shape), np.dtype(x.dtype), lambda layer: fetch(number, layer))

    try:
        use(structure.unflatten([whole(number, x) for number, x in enumerate(arrays)]))
    finally:
        _told((_END, _END))


def _told(wanted: tuple[int, int]) -> tuple[int, int]:
    """What process 0 wants, for all of them."""
    if jax.process_count() == 1:
        return wanted
    number, layer = multihost_utils.broadcast_one_to_all(np.array(wanted, np.int32))
    return int(number), int(layer)


def _gathered(x: jax.Array, layer: int) -> jax.Array:
    """A copy of `x`, or of one layer of it, on every device."""
    if isinstance(x.sharding, NamedSharding):
        everywhere = NamedSharding(x.sharding.mesh, PartitionSpec())
    else:
        everywhere = x.sharding
    # A copy also on a single device: JAX would keep what it fetches of `x` itself as long as that lives.
    return _copy(everywhere)(x) if layer == _END else _layer(everywhere)(x, layer)


@cache
def _copy(everywhere: jax.sharding.Sharding) -> Callable:
    return jax.jit(jax.numpy.copy, out_shardings=everywhere)


@cache
def _layer(everywhere: jax.sharding.Sharding) -> Callable:
    return jax.jit(partial(jax.lax.dynamic_index_in_dim, keepdims=False), out_shardings=everywhere)
