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

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mgie_jax.weights.tables import PLAIN, Table

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
    """

    def __init__(self, network: str, missing: list[str], unexpected: list[str], misshaped: dict[str, tuple]):
        self.missing, self.unexpected, self.misshaped = missing, unexpected, misshaped
        counts = [
            f"{len(keys)} {what}"
            for keys, what in (
                (missing, "missing"),
                (unexpected, "unexpected"),
                (misshaped, "of another shape"),
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


def iter_torch(params: Mapping) -> Iterator[tuple[str, np.ndarray]]:
    """(PyTorch key, contiguous host array) of every tensor of a parameter tree, one at a time."""
    for leaf, value in leaves(params):
        value = np.asarray(value)
        for key, layer in zip(leaf.keys, value if leaf.stacked else [value], strict=True):
            tensor = layer if leaf.to_torch is None else layer.transpose(leaf.to_torch)
            yield key, np.array(tensor, order="C")


def to_torch(params: Mapping) -> dict[str, np.ndarray]:
    """{PyTorch key: array} of a parameter tree, in its dtypes, as contiguous host arrays.

    Raises:
      ValueError: two parameters have the same key, or a kernel has no rule.
    """
    tensors: dict[str, np.ndarray] = {}
    for key, tensor in iter_torch(params):
        if key in tensors:
            raise ValueError(f"two parameters have the PyTorch key {key}")
        tensors[key] = tensor
    return tensors


def match(
    template: Mapping, tensors: Mapping[str, Any], network: str, table: Table = PLAIN
) -> dict[str, str]:
    """{the network's key: key in `tensors`}, complete on both sides; values need only a `shape`.

    Raises:
      KeyMismatch: anything is missing, left over, or of another shape.
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
    if missing or unexpected or misshaped:
        raise KeyMismatch(network, missing, unexpected, misshaped)
    return source


def from_torch(
    template: Mapping,
    tensors: Mapping[str, Any],
    network: str,
    table: Table = PLAIN,
    place: Callable[[tuple[str, ...], np.ndarray], Any] = lambda path, array: array,
) -> dict:
    """The parameter tree of a network from PyTorch tensors.

    Args:
      template: tree of shapes and dtypes, `jax.eval_shape(model.init, ...)["params"]`; a tensor of another
        dtype is cast to the template's.
      tensors: {PyTorch key: array}. Values need a `shape` and to be readable by `np.asarray`, and each is
        read once, when its turn comes: with lazy values no more than one parameter is in memory on its way.
      network: name used in errors.
      table: the network's exceptions.
      place: what to do with each finished host array, given its path: by default keep it; `jax.device_put`
        with the path's sharding puts it straight where it belongs.

    Raises:
      KeyMismatch: a key is missing, left over, or of another shape. Nothing has been read then.
    """
    source = match(template, tensors, network, table)
    params = {}
    for leaf, want in leaves(template):
        array = np.empty(want.shape, want.dtype)
        for i, key in enumerate(leaf.keys):
            tensor = np.asarray(tensors[source[key]])
            array[i if leaf.stacked else ...] = (
                tensor if leaf.from_torch is None else tensor.transpose(leaf.from_torch)
            )
        params[leaf.path] = place(leaf.path, array)
    return unflatten_dict(params)
