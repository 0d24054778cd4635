"""Which devices and which axes of a mesh a collective joins, however the groups are written."""

import numpy as np
import pytest

from mgie_jax.plan.groups import crossed, pairs, replica_groups

MESH = (2, 4, 3)  # data, fsdp, tensor


def written(groups):
    rows = ",".join("{" + ",".join(map(str, group)) + "}" for group in groups)
    return f"replica_groups={{{rows}}}, dimensions={{0}}"


def along(*axes):
    """The groups of devices that differ along these axes of MESH."""
    ids = np.moveaxis(np.arange(24).reshape(MESH), axes, range(-len(axes), 0))
    return ids.reshape(-1, int(np.prod([MESH[axis] for axis in axes])))


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_groups_along_axes_cross_these_axes(axes):
    groups = replica_groups(written(along(*axes)), 24)
    assert groups.tolist() == along(*axes).tolist()
    assert crossed(groups, MESH) == axes


@pytest.mark.parametrize(
    "text, axes",
    [
        ("replica_groups=[8,3]<=[24]", (2,)),
        ("replica_groups=[6,4]<=[2,4,3]T(0,2,1), use_global_device_ids=true", (1,)),
        ("replica_groups=[12,2]<=[2,12]T(1,0)", (0,)),
        ("replica_groups=[3,8]<=[8,3]T(1,0)", (0, 1)),
        ("replica_groups=[1,24]<=[24]", (0, 1, 2)),
        ("replica_groups={}, to_apply=%add", (0, 1, 2)),
        ("channel_id=1", (0, 1, 2)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4,'axis_2'=3] {'axis_1'}, dimensions={0}", (1,)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4,'axis_2'=3] {'axis_0','axis_2'}", (0, 2)),
        ("replica_groups=mesh['a'=8,'b'=3] {'a':(1)2}", (0,)),  # the first two of eight
        ("replica_groups=mesh['a'=8,'b'=3] {'a':(2)4}", (1,)),  # the other four
        ("replica_groups=mesh['b'=3,'a'=8], device_ids=([8,3]T(1,0)) {'b'}", (2,)),
        ("replica_groups=mesh['a'=24], device_ids=(" + ",".join(map(str, range(23, -1, -1))) + ") {'a'}", (0, 1, 2)),
        ("replica_groups=mesh['a'=24] {}", ()),
    ],
)
def test_every_way_of_writing_groups(text, axes):
    groups = replica_groups(text, 24)
    assert sorted(groups.ravel()) == list(range(24))
    assert crossed(groups, MESH) == axes
    if axes:
        assert sorted(map(sorted, groups.tolist())) == sorted(map(sorted, along(*axes).tolist()))


def test_a_subgroup_crosses_the_axis_that_it_is_of():
    assert crossed(replica_groups("replica_groups={{0,3},{6,9},{12,15},{18,21},{1,4}}", 24), MESH) == (1,)


def test_pairs_of_a_permutation():
    found = pairs("channel_id=1, source_target_pairs={{0,1},{1,2},{3,4}}, backend_config={}")
    assert found.tolist() == [[0, 1], [1, 2], [3, 4]]
    assert crossed(found, MESH) == (2,)
    assert pairs("source_target_pairs={}").shape == (0, 2)


@pytest.mark.parametrize("text", ["replica_groups=some_new_form", "replica_groups={{0,1},{2}}"])
def test_what_cannot_be_read_is_not_guessed(text):
    with pytest.raises(ValueError, match="groups"):
        replica_groups(text, 24)
