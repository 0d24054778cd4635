"""Links of groups of chips, and meshes that lie well on a slice."""

from dataclasses import dataclass

import numpy as np
import pytest

from mgie_jax.sharding import make_mesh
from mgie_jax.torus import best_mesh, links


def box(*ranges):
    x, y, z = (*ranges, [0])[:3]
    return [(a, b, c) for a in x for b in y for c in z]


@pytest.mark.parametrize(
    "shape, group, expected",
    [
        ((4, 4), box(range(4), range(4)), 2),  # lines, no rings: those of the corners decide
        ((4, 4), box(range(4), [0]), 1),
        ((4, 4), box([0], range(2)), 1),
        ((4, 4), box(range(2), range(2)), 2),
        ((4, 4), box(range(0, 4, 2), range(0, 4, 2)), 1),  # two each, and each half another group's
        ((16, 16), box(range(16), range(16)), 4),
        ((8, 16), box([0], range(16)), 2),  # the long axis is a ring
        ((8, 16), box(range(8), range(16)), 3),
        ((16, 16), box(range(8), [0]), 1),  # half a ring is a line
        ((16, 16), box(range(0, 16, 4), [0]), 0.5),  # a ring, shared by four groups
        ((2, 2, 4), box(range(2), range(2), range(4)), 3),  # no whole cube, no rings
        ((4, 4, 4), box(range(4), range(4), range(4)), 6),
        ((4, 4, 4), box(range(4), [0], [0]), 2),
        ((4, 4, 8), box(range(4), range(2), [0]), 3),
        ((2, 2), [(0, 0, 0), (1, 1, 0)], 1),  # across: shared with the other two
        ((2, 2, 1), box(range(2), [0]) * 2, 1),  # two devices a chip
    ],
)
def test_links_of_a_group(shape, group, expected):
    assert links(group, shape) == expected


@dataclass(frozen=True)
class Chip:
    """What JAX asks of a device."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v6 lite"

    @property
    def process_index(self) -> int:
        return self.slice_index


def slice_of(x, y, z=1, slices=1, **fields):
    places = box(range(x), range(y), range(z)) * slices
    return [Chip(n, place, n // (x * y * z), **fields) for n, place in enumerate(places)]


def groups(mesh, axis):
    return np.moveaxis(mesh, axis, -1).reshape(-1, mesh.shape[axis])


def has(mesh, axis, shape):
    """The links that every group along an axis has."""
    (found,) = {links([chip.coords for chip in group], shape) for group in groups(mesh, axis)}
    return found


@pytest.mark.parametrize(
    "slice_shape, sizes, expected",
    [
        ((4, 4), (4, 4, 1), {1: 2}),  # blocks of 2 x 2 instead of lines
        ((4, 4), (4, 1, 4), {2: 2}),
        ((4, 4), (1, 4, 4), {2: 2}),
        ((4, 4), (2, 8, 1), {1: 2}),
        ((8, 8), (4, 16, 1), {1: 2}),
        ((8, 8), (2, 8, 4), {2: 2, 1: 1}),
        ((16, 16), (16, 16, 1), {1: 2, 0: 2}),  # rings both, and none shared
        ((2, 2), (1, 1, 4), {2: 2}),
        ((1, 1), (1, 1, 1), {}),
    ],
)
def test_groups_have_as_many_links_as_there_can_be(slice_shape, sizes, expected):
    devices = slice_of(*slice_shape)
    mesh = make_mesh(sizes, devices).devices
    assert mesh.shape == sizes and set(mesh.flat) == set(devices)
    assert {axis: has(mesh, axis, slice_shape) for axis in expected} == expected


def test_blocks_in_three_dimensions():
    devices = slice_of(4, 4, 4, device_kind="TPU v5")
    mesh = best_mesh(np.array(devices, object).reshape(8, 8, 1))
    assert has(mesh, 1, (4, 4, 4)) == 3  # 2 x 2 x 2, or a ring of 4 beside another


def test_neighbours_in_a_group_are_neighbours_in_the_machine():
    mesh = make_mesh((4, 1, 4), slice_of(4, 4)).devices
    for group in groups(mesh, 2):
        steps = [np.abs(np.subtract(a.coords, b.coords)).sum() for a, b in zip(group, np.roll(group, 1), strict=True)]
        assert steps == [1] * 4


def test_every_slice_lies_alike():
    mesh = make_mesh((8, 4, 1), slice_of(4, 4, slices=2)).devices
    assert [{chip.slice_index for chip in group} for group in groups(mesh[:, :, 0], 1)] == [{0}] * 4 + [{1}] * 4
    assert has(mesh, 1, (4, 4)) == 2


@pytest.mark.parametrize(
    "devices",
    [
        [object() for _ in range(4)],
        [Chip(n, (n // 2, 0, 0), core_on_chip=n % 2) for n in range(4)],  # two share a chip
        [Chip(n, place) for n, place in enumerate([(0, 0, 0), (1, 0, 0), (0, 1, 0), (3, 3, 0)])],  # no box
    ],
)
def test_what_is_no_box_of_chips_lies_as_it_did(devices):
    default = np.array(devices, object).reshape(2, 2)
    assert best_mesh(default) is default
