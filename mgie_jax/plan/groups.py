"""Which devices a collective joins, and which axes of the mesh it thereby crosses.

Compiled HLO names devices by their place in the flattened mesh, in one of three ways: `{{0,1},{2,3}}`;
`[2,2]<=[2,2]T(1,0)`, the numbers in order, reshaped, transposed and cut into groups; and `mesh['a'=2,'b'=2] {'b'}`,
axes of a mesh of XLA's own making. An empty list stands for all devices.
"""

import re
from collections.abc import Sequence

import numpy as np

_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"mesh\[([^\]]*)\](?:,? ?device_ids=\((.*?)\))? ?\{([^}]*)\}")


def replica_groups(text: str, devices: int) -> np.ndarray:
    """The groups [groups, members] of the attributes of a collective, of `devices` in all.

    Raises:
        ValueError: they are written in a way that is not known here, or are of different sizes.
    """
    start = text.find("replica_groups=")
    text = text[start + len("replica_groups=") :] if start >= 0 else "{}"
    if text.startswith("{"):
        listed = re.match(r"\{((?:\{[\d, ]*\},? ?)*)\}", text)
        rows = [_numbers(row) for row in re.findall(r"\{([\d, ]*)\}", listed[1])] if listed else []
        rows = [row for row in rows if row]
        if len({len(row) for row in rows}) > 1:
            raise ValueError(f"groups of different sizes: {text[:80]}")
        return np.array(rows) if rows else np.arange(devices)[None]
    if found := _IOTA.match(text):
        sizes = _numbers(found[2])
        numbers = np.arange(np.prod(sizes)).reshape(sizes)
        return (numbers.transpose(_numbers(found[3])) if found[3] else numbers).reshape(_numbers(found[1]))
    if found := _MESH.match(text):
        return _of_mesh(found)
    raise ValueError(f"replica groups written in an unknown way: {text[:80]}")


def pairs(text: str) -> np.ndarray:
    """(source, target) of every pair [pairs, 2] of a permutation's attributes."""
    found = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text)
    listed = [_numbers(pair) for pair in re.findall(r"\{(\d+,\d+)\}", found[1])] if found else []
    return np.array(listed).reshape(-1, 2)


def crossed(groups: np.ndarray, mesh: Sequence[int]) -> tuple[int, ...]:
    """The axes of a mesh of these sizes along which any group's members [groups, members] differ."""
    places = np.stack(np.unravel_index(groups, tuple(mesh)))
    differ = (places != places[..., :1]).any((1, 2))
    return tuple(int(axis) for axis in np.flatnonzero(differ))


def _of_mesh(found: re.Match) -> np.ndarray:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
    ids = np.arange(np.prod(list(sizes.values()), dtype=int))
    if found[2]:  # "0,2,1,3", or numbers in order, reshaped and transposed: "[2,2]T(1,0)"
        order = re.match(r"\[([\d,]+)\]T\(([\d,]+)\)", found[2])
        numbers = _numbers(order[1]) if order else []
        ids = ids.reshape(numbers).transpose(_numbers(order[2])).ravel() if order else np.array(_numbers(found[2]))
    # A part of an axis is 'a':(4)2: cut into 4 times 2 times what is left, and the middle one of these.
    taken = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", found[3])
    parts = {name: [(int(before or 1), int(size or sizes[name])) for n, before, size in taken if n == name]
             for name in sizes}  # fmt: skip
    shape, grouped = [], []
    for name, whole in sizes.items():
        done = 1
        for before, size in sorted(parts[name]):
            shape += [before // done, size]
            grouped.append(len(shape) - 1)
            done = before * size
        shape.append(whole // done)
    ids = ids.reshape(shape)
    apart = [axis for axis in range(len(shape)) if axis not in grouped]
    members = int(np.prod([shape[axis] for axis in grouped], dtype=int))
    return ids.transpose(apart + grouped).reshape(-1, members)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
