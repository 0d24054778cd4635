"""Many settings of one run tried out on a topology, and those that fit ranked.

Of every mesh and every remat policy the batch is computed in as few parts as will fit, since every part gathers the
parameters again. Policies are tried from the one that takes least memory; what needs more than what did not fit is not
compiled.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mgie_jax.plan.advise import REMAT, Try
from mgie_jax.plan.ahead import Request
from mgie_jax.plan.machines import Topology, parse_topology
from mgie_jax.plan.plan import Plan, with_config

MAX_TENSOR = 8  # beyond it attention heads and what is exchanged between matmuls leave nothing to gain

Progress = Callable[[int, int, str], None]
"""Called with the number of settings decided on, of all of them, and the next one's name"""


@dataclass(frozen=True)
class Setting:
    """Sizes of a mesh, a remat policy and a number of parts (both "" and 1 where nothing is trained)."""

    mesh: tuple[int, ...]
    remat: str
    accumulate: int

    def __str__(self) -> str:
        sizes = ",".join(map(str, self.mesh))
        return f"mesh {sizes}" + (f", {self.remat}, accumulate {self.accumulate}" if self.remat else "")

    def request(self, request: Request) -> Request:
        request = replace(request, mesh=self.mesh)
        return with_config(request, remat=self.remat, accumulate=self.accumulate) if self.remat else request


def sweep(request: Request, attempt: Try, progress: Progress, fixed: bool = False) -> list[Plan]:
    """The plans that fit, the fastest first.

    Args:
        attempt: makes the plan of a request; a ValueError of it leaves a setting out.
        fixed: whether the request's mesh is the only one.
    """
    topology = parse_topology(request.topology, request.slices)
    meshes = [request.mesh] if fixed else list(all_meshes(topology))
    every = [setting for mesh in meshes for setting in settings(request, mesh, topology)]
    found, out, done = [], set(), 0
    for setting in every:
        progress(done, len(every), str(setting))
        done += 1
        if setting in out:
            continue
        try:
            plan = attempt(setting.request(request))
        except ValueError:
            continue
        if plan.fits:
            found.append(plan)
            out |= {other for other in every if _slower(other, setting)}
        elif plan.largest.memory.total - plan.largest.memory.temporaries > plan.hbm_bytes:
            # What lies there in any case is too much, and on meshes that cut it no finer it is as much.
            out |= {other for other in every if math.prod(other.mesh[1:]) <= math.prod(setting.mesh[1:])}
        else:
            out |= {other for other in every if _larger(other, setting)}
    progress(len(every), len(every), "")
    return sorted(found, key=lambda plan: plan.seconds)


def all_meshes(topology: Topology) -> Iterator[tuple[int, ...]]:
    """Meshes of powers of two, those that cut parameters finest first; every slice has whole replicas."""
    within, found = topology.devices // topology.slices, []
    for tensor in (2**n for n in range(int(math.log2(MAX_TENSOR)) + 1)):
        for fsdp in (2**n for n in range(within.bit_length())):
            if within % (tensor * fsdp) == 0:
                found.append((topology.devices // (tensor * fsdp), fsdp, tensor))
    yield from sorted(found, key=lambda mesh: (mesh[0], mesh[2]))


def settings(request: Request, mesh: tuple[int, ...], topology: Topology) -> Iterator[Setting]:
    """Of one mesh: policies from the most that is recomputed to the least, parts from few to many."""
    if request.mode != "train":
        yield Setting(mesh, "", 1)
        return
    data, fsdp, tensor = mesh
    if -1 in mesh:
        rest = topology.devices // -math.prod(mesh)
        data, fsdp, tensor = (rest if size == -1 else size for size in mesh)
    rows = (request.batch or request.config["batch_size"]) // (data * fsdp)
    parts = [2**n for n in range(rows.bit_length()) if rows and rows % 2**n == 0]
    for policy in reversed(REMAT):
        for n in parts:
            yield Setting((data, fsdp, tensor), policy, n)


def _slower(other: Setting, fits: Setting) -> bool:
    """Whether a setting is as one that fits but in more parts."""
    return (other.mesh, other.remat) == (fits.mesh, fits.remat) and other.accumulate > fits.accumulate


def _larger(other: Setting, full: Setting) -> bool:
    """Whether a setting takes at least as much memory as one that does not fit."""
    if not full.remat or other.mesh != full.mesh or other == full:
        return False
    return REMAT.index(other.remat) <= REMAT.index(full.remat) and other.accumulate <= full.accumulate
