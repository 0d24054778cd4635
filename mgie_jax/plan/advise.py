"""What to change where a program does not fit: the smallest change that makes it, found by compiling.

From small to large: a batch computed in more parts (training) or a smaller batch (the rest), a policy that recomputes
more, both, parameters and state cut finer (more of `fsdp`), more chips. What cannot do by a bound that can be had
without compiling - as if all temporaries went away in proportion - is not tried.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mgie_jax.plan.ahead import Request
from mgie_jax.plan.plan import Plan, with_config

REMAT = ("none", "dots", "blocks")
"""Policies of `config.remat`, from the least to the most that is recomputed"""

Try = Callable[[Request], Plan]


@dataclass(frozen=True)
class Change:
    """Another request, the flags that make it of the first, and the least memory it could take, in bytes."""

    flags: str
    request: Request
    least: float


def smallest_change(plan: Plan, attempt: Try) -> tuple[Change, Plan] | None:
    """The first change that makes a plan fit that does not, and what then comes of it; None where none does.

    Args:
        attempt: makes the plan of another request; a ValueError of it means that the change does not go.
    """
    failed: list[tuple[Change, int]] = []
    for change in changes(plan):
        if max(change.least, _line(change, plan, failed)) > plan.hbm_bytes:
            continue
        try:
            tried = attempt(change.request)
        except ValueError:
            continue
        if tried.fits:
            return change, tried
        failed.append((change, tried.largest.memory.total))
    return None


def changes(plan: Plan) -> Iterator[Change]:
    """Other requests that take less memory, from the smallest change to the largest."""
    request, memory = plan.request, plan.largest.memory
    kept = float(memory.total - memory.temporaries)
    if request.mode == "train":
        now = request.config["accumulate"]
        policies = REMAT[REMAT.index(request.config["remat"]) + 1 :]
        parts = list(_parts(plan))
        for n in parts:
            yield Change(_accumulate(n), with_config(request, accumulate=n), kept + memory.temporaries * now / n)
        for policy in policies:
            yield Change(_remat(policy), with_config(request, remat=policy), kept)
        for n in parts if policies else ():
            flags = f"{_remat(policies[-1])} {_accumulate(n)}"
            yield Change(flags, with_config(request, remat=policies[-1], accumulate=n), kept)
    else:
        batch = plan.facts[0].examples
        while (batch := batch // 2) >= 1:
            yield Change(f"--batch {batch}", replace(request, batch=batch), kept * 0.5)
    yield from _finer(plan)


def _parts(plan: Plan) -> Iterator[int]:
    """Larger numbers of parts that the batch can be computed in."""
    n, mesh = plan.request.config["accumulate"], plan.facts[0].mesh
    rows = plan.facts[0].examples // (mesh["data"] * mesh["fsdp"])
    while (n := 2 * n) <= rows:
        if rows % n == 0:
            yield n


def _finer(plan: Plan) -> Iterator[Change]:
    """More of fsdp: of the replicas' chips, then of a larger slice."""
    request, mesh, topology = plan.request, dict(plan.facts[0].mesh), plan.topology
    least = plan.largest.memory.total
    data, fsdp, tensor, factor = mesh["data"], mesh["fsdp"], mesh["tensor"], 1
    while data % 2 == 0 and (data // 2) % topology.slices == 0:
        data, fsdp, factor = data // 2, fsdp * 2, factor * 2
        sizes = (data, fsdp, tensor)
        yield from _strengthened(Change(_mesh(sizes), replace(request, mesh=sizes), least / factor), plan)
    while topology := topology.larger():
        sizes = (data, topology.devices // (data * tensor), tensor)
        if math.prod(sizes) != topology.devices:
            continue
        larger = replace(request, topology=topology.name, mesh=sizes)
        flags = f"--topology {topology.name} {_mesh(sizes)}"
        yield from _strengthened(Change(flags, larger, least * fsdp / sizes[1] / factor), plan)


def _strengthened(change: Change, plan: Plan) -> Iterator[Change]:
    """A change as it is, and with all that can be recomputed."""
    yield change
    if plan.request.mode == "train" and plan.request.config["remat"] != REMAT[-1]:
        flags = f"{change.flags} {_remat(REMAT[-1])}"
        yield Change(flags, with_config(change.request, remat=REMAT[-1]), change.least)


def _line(change: Change, plan: Plan, failed: list[tuple[Change, int]]) -> float:
    """Where the memory of accumulating in so many parts lies on a line, over the share of each part, through the two
    last attempts that differ from it in nothing else; 0 where there are no two."""

    def rest(request: Request) -> Request:
        return with_config(request, accumulate=0)

    if plan.request.mode != "train":
        return 0.0
    points = [(plan.request, plan.largest.memory.total)] + [(other.request, total) for other, total in failed]
    like = [(1 / r.config["accumulate"], total) for r, total in points if rest(r) == rest(change.request)]
    if len(like) < 2:
        return 0.0
    (x0, y0), (x1, y1) = like[-2:]
    return y1 + (y0 - y1) / (x0 - x1) * (1 / change.request.config["accumulate"] - x1)


def _accumulate(n: int) -> str:
    return f"--config.accumulate={n}"


def _remat(policy: str) -> str:
    return f"--config.remat={policy}"


def _mesh(sizes: tuple[int, ...]) -> str:
    return "--mesh " + ",".join(f"{axis}={size}" for axis, size in zip(("data", "fsdp", "tensor"), sizes, strict=True))
