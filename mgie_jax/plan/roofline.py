"""How fast a program can be at best, and what keeps it from being faster.

The model: four things happen at once, each as fast as its maker says, and a run takes as long as the slowest of them.
- compute: FLOPs, all that is computed, at the peak of bf16;
- HBM: bytes through main memory at its bandwidth;
- ICI: collectives within a slice, one after the other. Each device sends at least what `traffic.Collective.sent`
  says, over the links that it has within such a group at once (`machines.links`): all of them busy, none shared with
  another group; a permutation over one link, or two where some go one way round and some the other. Of GPUs the link
  is NVLink's.
- DCN: what is sent between slices, at a device's share of its host's network.
No latencies, no start-up, no waiting, no work that overlaps badly: a real step takes longer, never less.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mgie_jax.plan.facts import Facts, Flow
from mgie_jax.plan.machines import Machine

BOUNDS = ("compute", "hbm", "ici", "dcn")
"""What may bound a program: fields of `Roofline`"""


@dataclass(frozen=True)
class Roofline:
    """Seconds at best, of all runs of a program for one batch.

    Attributes:
        axes: those of `ici` by the axes of the mesh that are crossed.
        mfu: model FLOPs utilisation in the best time.
    """

    compute: float
    hbm: float
    ici: float
    dcn: float
    axes: dict[str, float]
    mfu: float

    @property
    def seconds(self) -> float:
        """The best possible time."""
        return max(self.compute, self.hbm, self.ici, self.dcn)

    @property
    def bound(self) -> str:
        """What it is bound by: one of `BOUNDS`."""
        return max(BOUNDS, key=lambda name: getattr(self, name))


def roofline(facts: Facts, machine: Machine) -> Roofline:
    """Of one program on its devices."""
    axes: dict[str, float] = {}
    dcn = 0.0
    for flow in facts.flows:
        if flow.dcn:
            dcn += facts.runs * flow_seconds(flow, machine)
        else:
            name = "+".join(flow.axes)
            axes[name] = axes.get(name, 0.0) + facts.runs * flow_seconds(flow, machine)
    compute = facts.runs * facts.flops / machine.flops
    hbm = facts.runs * facts.hbm_bytes / machine.hbm_bandwidth
    ici = math.fsum(axes.values())
    best = max(compute, hbm, ici, dcn)
    mfu = facts.runs * facts.model_flops / machine.flops / best if best else 0.0
    return Roofline(compute, hbm, ici, dcn, axes, mfu)


def flow_seconds(flow: Flow, machine: Machine) -> float:
    """Of all collectives of a kind over the same axes, in one run."""
    return flow.sent / (machine.dcn_bandwidth if flow.dcn else flow.links * machine.link_bandwidth)


def step_seconds(rooflines: Sequence[Roofline]) -> float:
    """The best time for one batch of programs that run one after the other."""
    return math.fsum(line.seconds for line in rooflines)
