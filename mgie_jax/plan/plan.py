"""A plan: the programs of a run compiled for a topology, whether they fit it and how fast they can be."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from mgie_jax.plan.ahead import Request, Watch, compile_ahead
from mgie_jax.plan.facts import Facts
from mgie_jax.plan.machines import GIB, Topology, parse_topology
from mgie_jax.plan.roofline import Roofline, roofline, step_seconds


@dataclass(frozen=True)
class Plan:
    """What came of a request.

    Attributes:
        facts: of each program, in the order in which they run.
        hbm_bytes: memory of a device that the programs may have.
    """

    request: Request
    facts: tuple[Facts, ...]
    hbm_bytes: float

    @property
    def topology(self) -> Topology:
        return parse_topology(self.request.topology, self.request.slices)

    @property
    def fits(self) -> bool:
        return all(facts.fits(self.hbm_bytes) for facts in self.facts)

    @property
    def largest(self) -> Facts:
        """The program that takes most memory."""
        return max(self.facts, key=lambda facts: facts.memory.total)

    @property
    def rooflines(self) -> tuple[Roofline, ...]:
        return tuple(roofline(facts, self.topology.machine) for facts in self.facts)

    @property
    def seconds(self) -> float:
        """Of one batch at best."""
        return step_seconds(self.rooflines)

    @property
    def mfu(self) -> float:
        """In the best time."""
        useful = sum(facts.runs * facts.model_flops for facts in self.facts)
        return useful / self.topology.machine.flops / self.seconds if self.seconds else 0.0

    @property
    def bound(self) -> str:
        """What bounds the program that takes longest: one of `roofline.BOUNDS`."""
        return max(self.rooflines, key=lambda line: line.seconds).bound

    @property
    def setting(self) -> str:
        """What was chosen, in words."""
        sizes = ", ".join(f"{axis}={size}" for axis, size in self.facts[0].mesh.items())
        chosen = f"mesh {sizes}; batch {self.facts[0].examples}"
        if self.request.mode == "train":
            chosen += f", accumulate {self.request.config['accumulate']}, remat {self.request.config['remat']}"
        if self.request.quantize:
            chosen += f", {self.request.quantize}"
        return chosen

    def to_json(self) -> dict[str, Any]:
        """Everything, with nothing but numbers, text, lists and objects."""
        machine = self.topology.machine
        return {
            "topology": self.request.topology,
            "slices": self.request.slices,
            "machine": machine.name,
            "devices": self.topology.devices,
            "estimate": machine.estimated,
            "mode": self.request.mode,
            "mesh": dict(self.facts[0].mesh),
            "batch": self.facts[0].examples,
            **({name: self.request.config[name] for name in ("accumulate", "remat")} if self.request.mode == "train"
               else {}),
            **({"quantize": self.request.quantize} if self.request.mode == "edit" else {}),
            "hbm_bytes": self.hbm_bytes,
            "total_bytes": self.largest.memory.total,
            "fits": self.fits,
            "best_seconds": self.seconds,
            "mfu": self.mfu,
            "bound": self.bound,
            "programs": [
                facts.to_json()
                | {"total_bytes": facts.memory.total}
                | {"roofline": asdict(line) | {"bound": line.bound, "seconds": line.seconds}}
                for facts, line in zip(self.facts, self.rooflines, strict=True)
            ],
        }  # fmt: skip


def make_plan(request: Request, hbm_gib: float | None = None, watch: Watch = lambda name: None) -> Plan:
    """Compiles the programs of a request.

    Args:
        hbm_gib: memory of a device that they may have, in GiB; None: all there is.

    Raises:
        ValueError, CompilerFailed: see `ahead.compile_ahead`.
    """
    whole = parse_topology(request.topology, request.slices).machine.hbm_bytes
    facts = compile_ahead(request, watch)
    return Plan(request, tuple(facts), whole if hbm_gib is None else min(whole, hbm_gib * GIB))


def with_config(request: Request, **values: Any) -> Request:
    """The request with other values of its config."""
    return replace(request, config=request.config | values)
