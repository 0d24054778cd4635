"""Topologies by their names, the links of groups on them, and what is said where there is no such thing."""

from dataclasses import dataclass

import pytest

from mgie_jax.plan import machines
from mgie_jax.plan.machines import MACHINES, links, parse_topology, require_compiler
from mgie_jax.train.flops import PEAKS, device_peak


@pytest.mark.parametrize(
    "name, slices, devices, machine",
    [
        ("v5e:4x4", 1, 16, "TPU v5e"),
        ("V5E:2x2", 2, 8, "TPU v5e"),
        ("v6e:1x1", 1, 1, "TPU v6e"),
        ("v5p:2x2x4", 1, 16, "TPU v5"),
        ("v4:4x4x4", 1, 64, "TPU v4"),
        ("v7x:2x2x1", 1, 8, "TPU7x"),  # two devices a chip
        ("tpu7x:2x2x1", 1, 8, "TPU7x"),
        ("h200:8", 2, 16, "NVIDIA H200"),
    ],
)
def test_topologies(name, slices, devices, machine):
    topology = parse_topology(name, slices)
    assert (topology.devices, topology.machine.name) == (devices, machine)


@pytest.mark.parametrize("name", ["v9:4x4", "v5e", "v5e:3x3", "v5p:4x4", "h200:7", "", "v5e:4x4x1"])
def test_unknown_ones_are_answered_with_those_that_are_known(name):
    with pytest.raises(ValueError, match="v5e:4x4|v5p:2x2x1|h200:8"):
        parse_topology(name)


def test_no_slices():
    with pytest.raises(ValueError, match="0 slices"):
        parse_topology("v5e:4x4", 0)


def test_larger_slices():
    assert parse_topology("v5e:4x4", 2).larger() == parse_topology("v5e:4x8", 2)
    assert parse_topology("v5e:16x16").larger() is None


def test_one_table_of_flops():
    for machine in MACHINES.values():
        assert machine.flops == PEAKS[machine.name] == device_peak(machine.name)


def test_a_missing_compiler_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(machines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"libtpu.*pip install 'mgie_jax\[tpu\]'"):
        require_compiler(parse_topology("v5e:4x4"))
    require_compiler(parse_topology("h200:8"))


@dataclass
class Device:
    coords: tuple


def test_links_of_a_group():
    line = [Device((x, 0, 0)) for x in range(4)]
    assert links(parse_topology("v5e:4x4"), line) == 1
    assert links(parse_topology("v5p:4x4x4"), line) == 2
    assert links(parse_topology("h200:8"), [object()] * 8) == 1
