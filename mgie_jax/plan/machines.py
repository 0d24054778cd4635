"""Machines that programs are planned for: what their makers publish of them, and how they are described to XLA.

A device is what JAX calls one: a chip, but half a chip of TPU v7x. Sources: the TPU pages of Google Cloud's
documentation ("TPU v5p", "TPU7x" and so on) for the bandwidths of HBM, ICI and the data-centre network, where ICI is
given per chip, over all links and both ways; v4's links and network are those of "How to Scale Your Model" (jax-ml),
part 2; NVIDIA's data sheets of the SXM modules for GPUs. FLOP/s stand in `train.flops.PEAKS`.
"""

import importlib.util
import math
from dataclasses import dataclass

from mgie_jax import torus
from mgie_jax.train.flops import PEAKS

GIB = 2**30
INSTALL = "the TPU compiler, libtpu, is not installed; pip install 'mgie_jax[tpu]'"


@dataclass(frozen=True)
class Machine:
    """One device of a kind.

    Attributes:
        name: as `train.flops.PEAKS` has it.
        hbm_bytes: memory that a program may have; of TPUs what the TPU compiler gives out, a little less than is sold.
        hbm_bandwidth: bytes/s.
        link_bandwidth: bytes/s of one ICI link one way; of GPUs what one GPU sends over NVLink.
        dcn_bandwidth: bytes/s that a device sends to other slices; of GPUs, to other nodes.
        shapes: slices that can be had, in chips; of GPUs the numbers in a node.
        devices_per_chip: where it is not one.
        tpu: what libtpu calls it; empty for GPUs.
    """

    name: str
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    dcn_bandwidth: float
    shapes: tuple[tuple[int, ...], ...]
    devices_per_chip: int = 1
    tpu: str = ""

    @property
    def flops(self) -> float:
        """bf16 FLOP/s."""
        return PEAKS[self.name]

    @property
    def fabric(self) -> str:
        """What joins the devices of a slice."""
        return "ICI" if self.tpu else "NVLink"

    @property
    def estimated(self) -> bool:
        """Whether another compiler than its own stands in for it."""
        return not self.tpu


_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = (
    (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8), (8, 8, 16), (8, 16, 16),
    (16, 16, 16),
)  # fmt: skip
_NODE = ((1,), (2,), (4,), (8,))

MACHINES = {
    "v4": Machine("TPU v4", 30.75 * GIB, 1200e9, 45e9, 6.25e9, _CUBES, tpu="v4"),
    "v5e": Machine("TPU v5e", 15.75 * GIB, 819e9, 50e9, 3.125e9, _FLAT, tpu="v5e"),
    "v5p": Machine("TPU v5", 95.74 * GIB, 2765e9, 100e9, 6.25e9, _CUBES, tpu="v5p"),
    "v6e": Machine("TPU v6e", 31.25 * GIB, 1638e9, 100e9, 12.5e9, _FLAT, tpu="v6e"),
    # 7380 GB/s, six links of 100 GB/s and 100 Gb/s of network a chip, which its two devices share.
    "v7x": Machine("TPU7x", 94.75 * GIB, 3690e9, 50e9, 6.25e9, _CUBES, 2, tpu="tpu7x"),
    "a100": Machine("NVIDIA A100", 80e9, 2039e9, 300e9, 25e9, _NODE),
    "h100": Machine("NVIDIA H100", 80e9, 3350e9, 450e9, 50e9, _NODE),
    "h200": Machine("NVIDIA H200", 141e9, 4800e9, 450e9, 50e9, _NODE),
}


@dataclass(frozen=True)
class Topology:
    """So many slices of one shape: "v5e:4x4", 2 of them.

    A slice is what ICI or NVLink connects; between slices there is the data-centre network.
    """

    name: str
    machine: Machine
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def devices(self) -> int:
        return self.slices * math.prod(self.shape) * self.machine.devices_per_chip

    def __str__(self) -> str:
        return self.name if self.slices == 1 else f"{self.slices} x {self.name}"

    def larger(self) -> "Topology | None":
        """The next larger slice of the machine; None where there is none."""
        shapes = self.machine.shapes
        later = shapes[shapes.index(self.shape) + 1 :]
        if not later:
            return None
        name = f"{self.name.partition(':')[0]}:{'x'.join(map(str, later[0]))}"
        return Topology(name, self.machine, later[0], self.slices)


def parse_topology(name: str, slices: int = 1) -> Topology:
    """The topology that "v5e:4x4", "v5p:2x2x4" or "h200:8" says.

    Raises:
        ValueError: the machine or its shape is not known, and the message lists what is; or less than one slice.
    """
    if slices < 1:
        raise ValueError(f"{slices} slices: there must be at least 1")
    kind, _, size = name.lower().partition(":")
    machine = MACHINES.get({"tpu7x": "v7x"}.get(kind, kind))
    if machine is None:
        raise ValueError(f"topology {name}: no such machine; known are {', '.join(MACHINES)}, as in v5e:4x4 or h200:8")
    shapes = {"x".join(map(str, shape)): shape for shape in machine.shapes}
    if size not in shapes:
        raise ValueError(f"topology {name}: {kind} comes as {', '.join(f'{kind}:{shape}' for shape in shapes)}")
    return Topology(f"{kind}:{size}", machine, shapes[size], slices)


def require_compiler(topology: Topology) -> None:
    """Raises ValueError where the topology's compiler is not installed; imports nothing of it."""
    if topology.machine.tpu and importlib.util.find_spec("libtpu") is None:
        raise ValueError(INSTALL)


def described_devices(topology: Topology) -> list:
    """Devices to compile for, none of which need be there; in a process of its own (`compile`).

    Of GPUs they are this process's CPU devices: as many as XLA_FLAGS=--xla_force_host_platform_device_count made.
    """
    import jax
    from jax.experimental import topologies

    machine = topology.machine
    if machine.estimated:
        return jax.devices("cpu")[: topology.devices]
    options = {}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    if machine.tpu == "v4":
        options["chip_config_name"] = "megacore"  # as its two cores are used: as one device
    if math.prod(topology.shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    name = f"{machine.tpu}:{'x'.join(map(str, topology.shape))}"
    return list(topologies.get_topology_desc(topology_name=name, platform="tpu", **options).devices)


def links(topology: Topology, group: list) -> float:
    """How many ICI links each device of a group within a slice has towards the others; GPUs have one, to a switch."""
    return 1.0 if topology.machine.estimated else torus.links([device.coords for device in group], topology.shape)
