"""How the chips of a TPU slice are joined, and how a mesh lies best on them.

Chips stand on a grid, each linked to its neighbours along every axis. Those of v5e and v6e form a rectangle cut from a
torus of 16 x 16, whose axes are rings where they are 16 long; all others are built of cubes of 4 x 4 x 4 with optical
switches, which close every axis to a ring where all are a multiple of 4 long (Google Cloud's pages on the TPUs).

A group that exchanges something does so the faster the more links its members have to one another. Four chips in a line
have one each, for the ends have no more; in a block of 2 x 2 they have two.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

Shape = Sequence[int]


def links(places: Sequence[Shape] | Int[np.ndarray, "n dims"], shape: Shape) -> float:
    """How many links each chip of a group has towards the others of it, in a slice of this shape.

    Two for every axis of the slice that the group spans where that axis is a ring and the group goes all the way round,
    else one, which is all that the ends of a line have there. Between members that are `n` chips apart lie those of
    other groups, which use the same links for themselves: each has an n-th. Where a group does not fill the box that it
    spans, other groups like it do, and all share the box's links.

    Args:
      places: the chips' coordinates; several devices may be in one.
    """
    places = np.unique(np.asarray(places), axis=0)
    there, box = 0.0, 1
    for along, whole in zip(places.T, shape, strict=False):
        spanned = np.unique(along)
        if len(spanned) > 1:
            apart = (spanned[-1] - spanned[0]) / (len(spanned) - 1)
            around = len(spanned) * apart == whole and _is_ring(whole, shape)
            there += (2 if around else 1) / apart
            box *= len(spanned)
    return float(there * len(places) / box) if there else 1.0


def _is_ring(size: int, shape: Shape) -> bool:
    flat = math.prod(shape[2:]) == 1
    return size % 16 == 0 if flat else all(one % 4 == 0 for one in shape)


def best_mesh(default: np.ndarray) -> np.ndarray:
    """The devices of a slice as a mesh whose groups have most links: those of the last axis first, then of the others.

    Args:
      default: devices [a, b, ...] as they are to lie unless there is something with more links; also where devices have
        no coordinates, share a chip, or do not fill a box.
    """
    places = [getattr(device, "coords", None) for device in default.flat]
    if None in places or len(set(map(tuple, places))) != default.size:
        return default
    coordinates = np.array(places).reshape(*default.shape, -1)
    low, high = coordinates.reshape(default.size, -1).min(0), coordinates.reshape(default.size, -1).max(0)
    shape = tuple(int(size) for size in high - low + 1)
    if math.prod(shape) != default.size:
        return default
    # The first of equals is taken, and JAX's knows more of its machines than their links.
    best = max([coordinates - low, *_blocks(shape, default.shape)], key=lambda mesh: _links_of_axes(mesh, shape))
    at = {place: device for place, device in zip(map(tuple, np.array(places) - low), default.flat, strict=True)}
    chosen = np.empty(default.shape, object)
    for index in np.ndindex(default.shape):
        chosen[index] = at[tuple(best[index])]
    return chosen


def _links_of_axes(mesh: np.ndarray, shape: Shape) -> tuple[float, ...]:
    """Of the coordinates [a, b, ..., dims] of a mesh, the links of a group along each axis, from the last to the first.

    All groups along an axis of a block layout are alike, and the first of JAX's is as good as any.
    """
    axes = range(mesh.ndim - 2, -1, -1)
    groups = (np.moveaxis(mesh, axis, 0)[(slice(None),) + (0,) * (mesh.ndim - 2)] for axis in axes)
    return tuple(links(group, shape) for group in groups)


def _blocks(shape: Shape, sizes: Shape) -> Iterator[np.ndarray]:
    """Coordinates [*sizes, dims] of every mesh that is made of blocks of blocks: the last axis's in those of the one
    before, and so on."""
    every = np.stack(np.indices(shape), -1)
    for split in itertools.product(*(_factors(size, len(sizes)) for size in shape)):
        if all(math.prod(parts) == size for parts, size in zip(zip(*split, strict=True), sizes, strict=True)):
            apart = every.reshape([*itertools.chain(*split), len(shape)])
            together = [axis + dim * len(sizes) for axis in range(len(sizes)) for dim in range(len(shape))]
            mesh = apart.transpose([*together, apart.ndim - 1]).reshape(*sizes, len(shape))
            for axis, parts in enumerate(zip(*split, strict=True)):
                mesh = mesh.take(_around(parts), axis)
            yield mesh


def _factors(size: int, count: int) -> list[tuple[int, ...]]:
    """All ways to write a number as a product of so many, in order."""
    if count == 1:
        return [(size,)]
    return [(one, *rest) for one in range(1, size + 1) if size % one == 0 for rest in _factors(size // one, count - 1)]


def _around(box: Shape) -> list[int]:
    """The places of a box, numbered as by `reshape`, so that each is next to the one before and, if it can be, the last
    to the first: neighbours in a mesh pass things on in such a circle."""
    numbers = np.arange(math.prod(box)).reshape([size for size in box if size > 1] or [1])
    while numbers.ndim > 2:  # the first two as one that is walked to and fro
        rows = [row[::-1] if n % 2 else row for n, row in enumerate(numbers)]
        numbers = np.concatenate(rows)
    if numbers.ndim == 1:
        return numbers.tolist()
    if len(numbers) % 2:
        numbers = numbers.T
    back, rest = numbers[1:, 0][::-1], [row[:0:-1] if n % 2 else row[1:] for n, row in enumerate(numbers)]
    return [int(numbers[0, 0]), *map(int, np.concatenate([*rest, back]))]
