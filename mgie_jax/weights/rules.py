"""Parameter trees <-> PyTorch state dicts, exactly, both ways.

Modules carry PyTorch's names, so a parameter's path joined by "." is its PyTorch key but for three things:

* the leaf: `kernel`, `scale` and `embedding` are called `weight` there;
* the axes of a `kernel`: Dense (in, out) is Linear (out, in), Conv HWIO is Conv2d OIHW;
* scanned layers: below a path part named `layers` or `block`, without a number, a leaf has a leading layer
  axis and stands for one tensor a layer (`model.layers` -> `model.layers.0`, `model.layers.1` ...).

Nothing is computed, only moved: the numbers are the same bits in either form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mgie_jax.paths import is_remote
from mgie_jax.weights.tables import PLAIN, Table
from mgie_jax.weights.tensor import Slices, Tensor, cast, is_floating, narrows, whole_slices

STACKED_PARTS = ("layers", "block")
_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_TO_TORCH_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}  # Dense, Conv
_FROM_TORCH_AXES = {2: (1, 0), 4: (2, 3, 1, 0)}


class KeyMismatch(ValueError):
    """The tensors at hand are not those of the network.

    The first line of the message is a summary; every key follows on its own line.

    Attributes:
      missing: keys the network has and the tensors lack.
      unexpected: keys the tensors have and the network lacks.
      misshaped: key -> (shape the network has, shape found).
      mistyped: key -> dtype found, which holds no real numbers.
    """

    def __init__(
        self,
        network: str,
        missing: list[str],
        unexpected: list[str],
        misshaped: dict[str, tuple],
        mistyped: dict[str, Any] | None = None,
    ):
        self.missing, self.unexpected, self.misshaped, self.mistyped = missing, unexpected, misshaped, mistyped or {}
        counts = [
            f"{len(keys)} {what}"
            for keys, what in (
                (missing, "missing"),
                (unexpected, "unexpected"),
                (misshaped, "of another shape"),
                (self.mistyped, "of no floating dtype"),
            )
            if keys
        ]
        lines = [
            f"{network}: the tensors do not fit the network ({', '.join(counts)}); "
            "use the config.json these tensors were saved with, or another file"
        ]
        lines += [f"  missing: {key}" for key in missing]
        lines += [f"  unexpected: {key}" for key in unexpected]
        lines += [f"  shape: {key}: expected {want}, found {got}" for key, (want, got) in misshaped.items()]
        lines += [f"  dtype: {key}: expected floats, found {dtype}" for key, dtype in self.mistyped.items()]
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class Leaf:
    """One parameter: where it is in the tree, and the PyTorch tensors it stands for.

    Attributes:
      path: its path in the tree.
      keys: one PyTorch key or, where `stacked`, one a layer.
      shape: shape of each of these tensors.
      to_torch: axes that turn one layer of the leaf into its tensor; None to leave them.
      from_torch: the reverse.
    """

    path: tuple[str, ...]
    keys: tuple[str, ...]
    stacked: bool
    shape: tuple[int, ...]
    to_torch: tuple[int, ...] | None
    from_torch: tuple[int, ...] | None


def leaves(tree: Mapping) -> Iterator[tuple[Leaf, Any]]:
    """Every parameter of `tree` (nested dicts of anything with a shape) with the rule that converts it.

    Raises:
      ValueError: a `kernel` is neither Dense's nor Conv's.
    """
    for path, value in flatten_dict(tree).items():
        *parents, name = path
        stack = next((i for i, part in enumerate(parents) if part in STACKED_PARTS), None)
        shape = tuple(value.shape) if stack is None else tuple(value.shape)[1:]
        to_torch = from_torch = None
        if name == "kernel":
            if len(shape) not in _TO_TORCH_AXES:
                raise ValueError(f"{'.'.join(path)}: no rule for a kernel of shape {tuple(value.shape)}")
            to_torch, from_torch = _TO_TORCH_AXES[len(shape)], _FROM_TORCH_AXES[len(shape)]
            shape = tuple(shape[axis] for axis in to_torch)
        name = _LEAF_NAMES.get(name, name)
        if stack is None:
            keys = (".".join((*parents, name)),)
        else:
            head, tail = parents[: stack + 1], parents[stack + 1 :]
            keys = tuple(".".join((*head, str(i), *tail, name)) for i in range(value.shape[0]))
        yield Leaf(path, keys, stack is not None, shape, to_torch, from_torch), value


@dataclass(frozen=True)
class TorchView:
    """One layer of a parameter as the PyTorch tensor it is, moved only when asked; it is sliced as `Tensor` is."""

    leaf: Leaf
    layer: int | None
    value: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.leaf.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.value.dtype)

    def __getitem__(self, index: slice | Slices) -> np.ndarray:
        return np.array(self._view()[index], order="C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._view(), dtype, order="C")

    def _view(self) -> np.ndarray:
        # Of an array on a device JAX keeps what it fetched; of others a layer may be had without the rest.
        host = np.asarray(self.value) if isinstance(self.value, jax.Array) else self.value
        host = np.asarray(host if self.layer is None else host[self.layer, ...])
        return host if self.leaf.to_torch is None else host.transpose(self.leaf.to_torch)


def iter_torch(params: Mapping) -> Iterator[tuple[str, TorchView]]:
    """(PyTorch key, tensor still to be moved) of every tensor of a parameter tree."""
    for leaf, value in leaves(params):
        for i, key in enumerate(leaf.keys):
            yield key, TorchView(leaf, i if leaf.stacked else None, value)


def to_torch(params: Mapping) -> dict[str, np.ndarray]:
    """{PyTorch key: array} of a parameter tree, in its dtypes, as contiguous host arrays.

    Raises:
      ValueError: two parameters have the same key, or a kernel has no rule.
    """
    tensors: dict[str, np.ndarray] = {}
    for key, tensor in iter_torch(params):
        if key in tensors:
            raise ValueError(f"two parameters have the PyTorch key {key}")
        tensors[key] = np.asarray(tensor)
    return tensors


def match(template: Mapping, tensors: Mapping[str, Any], network: str, table: Table = PLAIN) -> dict[str, str]:
    """{the network's key: key in `tensors`}, complete on both sides; values need only `shape` and `dtype`.

    Raises:
      KeyMismatch: anything is missing, left over, of another shape, or holds no floats.
    """
    source: dict[str, str] = {}
    clashing = []
    for key in tensors:
        name = table.network_key(key)
        if name is None:
            continue
        if name in source:
            clashing.append(key)
        else:
            source[name] = key
    shapes = {key: leaf.shape for leaf, _ in leaves(template) for key in leaf.keys}
    for key, stand_in in table.stand_ins:
        if key in shapes and key not in source and stand_in in source:
            source[key] = source[stand_in]
    missing = [key for key in shapes if key not in source]
    unexpected = [key for name, key in source.items() if name not in shapes] + clashing
    misshaped = {
        key: (shape, tuple(tensors[source[key]].shape))
        for key, shape in shapes.items()
        if key in source and tuple(tensors[source[key]].shape) != shape
    }
    mistyped = {
        key: tensors[source[key]].dtype
        for key in shapes
        if key in source and not is_floating(tensors[source[key]].dtype)
    }
    if missing or unexpected or misshaped or mistyped:
        raise KeyMismatch(network, missing, unexpected, misshaped, mistyped)
    return source


@dataclass(frozen=True)
class LazyLeaf:
    """A parameter still in its files: `np.asarray(leaf)` reads it whole, `leaf[index]` only that part.

    Reading it whole has it and one PyTorch tensor in memory; a part of it is read straight into place, from those
    layers, rows and columns alone that are in it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    leaf: Leaf
    tensors: tuple[Any, ...]

    @property
    def is_remote(self) -> bool:
        """Whether reading it takes requests over the network."""
        return any(isinstance(tensor, Tensor) and is_remote(tensor.path) for tensor in self.tensors)

    def __getitem__(self, index: slice | Slices) -> np.ndarray:
        index = whole_slices(index, self.shape)
        out = np.empty([max(0, part.stop - part.start) for part in index], self.dtype)
        layers, inner = (index[0], index[1:]) if self.leaf.stacked else (slice(0, 1), index)
        if self.leaf.to_torch is not None:
            inner = tuple(inner[axis] for axis in self.leaf.to_torch)
        keys = self.leaf.keys[layers]
        for i, (key, tensor) in enumerate(zip(keys, self.tensors[layers], strict=True)):
            self._put(out[i, ...] if self.leaf.stacked else out, np.asarray(tensor[inner]), key)
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        out = np.empty(self.shape, self.dtype if dtype is None else dtype)
        for i, (key, tensor) in enumerate(zip(self.leaf.keys, self.tensors, strict=True)):
            self._put(out[i, ...] if self.leaf.stacked else out, np.asarray(tensor), key)
        return out

    def _put(self, out: np.ndarray, tensor: np.ndarray, key: str) -> None:
        # Assigning casts by itself; only a narrower dtype needs a look at every number.
        tensor = cast(tensor, out.dtype, key) if narrows(tensor.dtype, out.dtype) else tensor
        out[...] = tensor if self.leaf.from_torch is None else tensor.transpose(self.leaf.from_torch)


Place = Callable[[tuple[str, ...], LazyLeaf], Any]


def sharded(sharding_of: Callable[[tuple[str, ...], tuple[int, ...]], jax.sharding.Sharding]) -> Place:
    """A `place` that puts each parameter straight onto its devices: each reads its own part and no more.

    One part is on the host at a time; devices that hold the same part (replicas) share one reading. A process reads
    only what its own devices hold. From a bucket it reads all that they hold of a parameter at once, since the parts
    lie interleaved in the file and each would be fetched with the others around it.

    Args:
      sharding_of: from a parameter's path and shape to its sharding.
    """

    def place(path: tuple[str, ...], leaf: LazyLeaf) -> jax.Array:
        sharding = sharding_of(path, leaf.shape)
        holders: dict[tuple, list[jax.Device]] = {}
        for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
            index = whole_slices(index or (), leaf.shape)
            holders.setdefault(tuple((part.start, part.stop) for part in index), []).append(device)
        source, origin = leaf, (0,) * len(leaf.shape)
        if leaf.is_remote:
            starts, stops = (np.array([[bound[end] for bound in held] for held in holders], int) for end in (0, 1))
            origin = tuple(map(int, starts.min(0)))
            source = leaf[tuple(map(slice, origin, map(int, stops.max(0))))]
        arrays = []
        for bounds, devices in holders.items():
            part = source[tuple(slice(a - o, b - o) for (a, b), o in zip(bounds, origin, strict=True))]
            # Waited for, so that the part is gone from the host before the next is read.
            arrays += jax.block_until_ready([jax.device_put(part, device) for device in devices])
            del part
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)

    return place


def from_torch(
    template: Mapping,
    tensors: Mapping[str, Any],
    network: str,
    table: Table = PLAIN,
    place: Place = lambda path, leaf: np.asarray(leaf),
) -> dict:
    """The parameter tree of a network from PyTorch tensors.

    Args:
      template: tree of shapes and dtypes, `jax.eval_shape(model.init, ...)["params"]`; a tensor of another
        dtype is cast to the template's.
      tensors: {PyTorch key: array or `Tensor`}. Each is read when its turn comes.
      network: name used in errors.
      table: the network's exceptions.
      place: what to do with each parameter, given its path and the parameter still in its files: by default read
        it; `sharded(...)` puts it straight where it belongs.

    Raises:
      KeyMismatch: a key is missing, left over, of another shape or no floats. Nothing has been read then.
    """
    source = match(template, tensors, network, table)
    params = {}
    for leaf, want in leaves(template):
        lazy = LazyLeaf(tuple(want.shape), np.dtype(want.dtype), leaf, tuple(tensors[source[key]] for key in leaf.keys))
        params[leaf.path] = place(leaf.path, lazy)
    return unflatten_dict(params)
