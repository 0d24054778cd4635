"""Compiling ahead of time: starts `compile` in a process of its own, and waits."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from mgie_jax.plan.facts import Facts
from mgie_jax.plan.machines import Topology, parse_topology, require_compiler

Watch = Callable[[str], None]
"""Called with the name of each program before it is compiled"""

# No TPU is looked for; several such processes may run at once; libtpu keeps no logs.
_TPU = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_LOG_DIR": "disabled"}


@dataclass(frozen=True)
class Request:
    """What to compile, and for what.

    Attributes:
        config: of `mgie train`, as nested dicts.
        mode: "train", "edit" or "prepare".
        topology, slices: as `machines.parse_topology` takes them.
        mesh: sizes of data, fsdp, tensor, one of which may be -1.
        batch: examples at once, of all devices together; None: what `programs.programs` takes then.
        effort: of the compiler: "quick", its least, which takes a third of the time and half of the memory and plans
            for slightly larger temporaries; or "full", what a run is compiled with.
        quantize: of an edit, None or one of `models.quantize.MODES`.
    """

    config: dict[str, Any]
    mode: str
    topology: str
    slices: int
    mesh: tuple[int, ...]
    batch: int | None
    effort: str = "quick"
    quantize: str | None = None


class CompilerFailed(RuntimeError):
    """The process that compiles came to an end without an answer; the message ends with what it said last, or (with
    MGIE_DEBUG=1) all that it said."""


def compile_ahead(request: Request, watch: Watch = lambda name: None) -> list[Facts]:
    """The facts of every program of a request.

    Raises:
        ValueError: the topology is not known, its compiler is not installed, or the request does not fit itself.
        CompilerFailed: see above.
    """
    topology = parse_topology(request.topology, request.slices)
    require_compiler(topology)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as noise:
        child = subprocess.Popen(
            [sys.executable, "-m", "mgie_jax.plan.compile"], env=environment(topology, request.effort),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise, text=True,
        )  # fmt: skip
        try:
            answer = _answer(child, request, watch)
        finally:
            child.kill()
            child.wait()
        if answer is None:
            noise.seek(0)
            raise CompilerFailed(_failure(child.returncode, noise.read()))
    if "error" in answer:
        raise ValueError(answer["error"])
    return [Facts.from_json(told) for told in answer["facts"]]


def environment(topology: Topology, effort: str) -> dict[str, str]:
    """The environment of a process that compiles for a topology."""
    made = os.environ | _TPU | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    if effort == "quick":
        made["JAX_EXEC_TIME_OPTIMIZATION_EFFORT"] = "-1"
    if topology.machine.estimated:
        flags = os.environ.get("XLA_FLAGS", "")
        made["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={topology.devices}".strip()
    return made


def _answer(child: subprocess.Popen, request: Request, watch: Watch) -> dict[str, Any] | None:
    try:
        child.stdin.write(json.dumps(asdict(request)))
        child.stdin.close()
    except BrokenPipeError:
        return None
    for line in child.stdout:
        told = json.loads(line)
        if "compiling" not in told:
            child.wait()
            return told
        watch(told["compiling"])
    child.wait()
    return None


def _failure(code: int, noise: str) -> str:
    if code == -9:
        return "the process that compiles was killed; it may have run out of memory"
    said = [line for line in noise.splitlines() if line.strip()]
    # Before its error, or a traceback, stands what libtpu has to say in any case.
    shown = said if os.environ.get("MGIE_DEBUG") == "1" else said[-1:]
    return f"compiling failed with exit code {code}: " + "\n".join(shown)
