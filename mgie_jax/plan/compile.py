"""Compiles programs for devices that need not be there, and tells what came of it: a process of its own.

    python -m mgie_jax.plan.compile < request.json > answer.jsonl

The TPU compiler goes with a process whose JAX runs on the CPU and that is told not to look for a TPU; the process that
plans (`ahead`) starts it so. A request is `ahead.Request` as JSON. Every line of the answer is a JSON object: first
{"compiling": name} of each program, then {"facts": [...]}; or {"error": message} where the request is at fault.
"""

import json
import math
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from mgie_jax.plan import buffers, count
from mgie_jax.plan.buffers import Buffer
from mgie_jax.plan.facts import Exchange, Facts, Flow, Memory
from mgie_jax.plan.hlo import Module
from mgie_jax.plan.machines import Topology, described_devices, links, parse_topology
from mgie_jax.plan.programs import Program, programs
from mgie_jax.plan.traffic import Collective, Mesh, Traffic, traffic
from mgie_jax.sharding import make_mesh

SHOWN = 10
FULL = "RESOURCE_EXHAUSTED"
# Of a program for the CPU that is never run only the memory matters, not how good its machine code is.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def main() -> None:
    """Reads a request and answers it."""
    # Libraries print what they like on standard output: the answer has a channel of its own.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**told: Any) -> None:
        print(json.dumps(told), file=answer, flush=True)

    request = json.load(sys.stdin)
    try:
        say(facts=[facts.to_json() for facts in compiled(request, lambda name: say(compiling=name))])
    except ValueError as error:
        say(error=str(error))


def compiled(request: dict[str, Any], compiling: Callable[[str], None]) -> list[Facts]:
    """The facts of every program of a request.

    Raises:
        ValueError: config, mesh, batch and topology do not fit each other.
    """
    topology = parse_topology(request["topology"], request["slices"])
    config = ml_collections.ConfigDict(_tuples(request["config"]))
    mesh = make_mesh(request["mesh"], described_devices(topology))
    if mesh.shape["data"] % topology.slices:
        raise ValueError(f"mesh: data={mesh.shape['data']} must be a multiple of the {topology.slices} slices")
    found = []
    for program in programs(config, request["mode"], mesh, batch=request["batch"], quantize=request["quantize"]):
        compiling(program.name)
        found.append(inspect(program, topology))
    return found


def inspect(program: Program, topology: Topology) -> Facts:
    """Traces and compiles a program for the devices of its mesh."""
    start = time.perf_counter()
    traced = program.trace()
    lowered = traced.lower()
    traced_s, start = time.perf_counter() - start, time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mgie-plan-") as folder:
        folder = Path(folder)
        options = buffers.options(folder) | (QUICKLY if topology.machine.estimated else {})
        refused, memory = "", None
        try:
            memory = lowered.compile(compiler_options=options).memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if FULL not in str(error) or not buffers.dumped(folder, buffers.HLO):
                raise
            refused = " ".join(str(error).split())
        compile_s = time.perf_counter() - start
        module = Module.parse(buffers.dumped(folder, buffers.HLO))
        assigned = buffers.assignment(folder, module)

    mesh, jaxpr = program.mesh, traced.jaxpr.jaxpr
    arguments, unread = _arguments(program.arguments, jaxpr, module)
    unread += [Buffer(name, "argument", *_lies(x)) for name, x in _named({"beside": program.beside})]
    turns = program.while_turns if count.ends_by_data(jaxpr) else 0
    moved = traffic(module, Mesh(mesh.axis_names, mesh.devices.shape, topology.slices), max(turns, 1))
    flops, kernels = count.flops(jaxpr, max(turns, 1)), count.kernel_flops(jaxpr, max(turns, 1))
    return Facts(
        name=program.name,
        examples=program.examples,
        runs=program.runs,
        mesh={axis: mesh.shape[axis] for axis in mesh.axis_names},
        memory=Memory(
            arguments=sum(b.nbytes for b in arguments),
            unread=sum(b.nbytes for b in unread),
            outputs=assigned.outputs if memory is None else memory.output_size_in_bytes,
            aliased=assigned.aliased if memory is None else memory.alias_size_in_bytes,
            temporaries=_temporaries(refused, assigned.temporaries) if memory is None else memory.temp_size_in_bytes,
            code=0 if memory is None else memory.generated_code_size_in_bytes,
        ),
        parts=_parts([*arguments, *unread]),
        buffers=tuple(sorted([*arguments, *unread, *assigned.alive], key=lambda b: -b.nbytes)[:SHOWN]),
        # XLA makes sums of products of a matrix and a vector, which the count of what is compiled leaves out.
        flops=max(moved.flops + kernels / mesh.size, flops / mesh.size),
        shared_flops=flops / mesh.size,
        model_flops=(flops if program.model_flops is None else program.model_flops) / mesh.size,
        hbm_bytes=moved.hbm_bytes,
        moves=tuple(moved.operations.most_common(SHOWN)),
        flows=_flows(moved, mesh, topology),
        exchanges=_exchanges(moved),
        while_turns=turns,
        refused=refused,
        trace_s=traced_s,
        compile_s=compile_s,
    )


def _arguments(arguments: dict[str, Any], jaxpr: Any, module: Module) -> tuple[list[Buffer], list[Buffer]]:
    """Each array of the arguments as it lies on a device: those that the program reads, and those it does not."""
    _, used = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=False)  # as jit finds out what to leave out
    # Of a program with some two thousand arguments or more, all are one tuple.
    parameters = [
        array for _, name in sorted(module.entry.parameters.items()) for array in module.entry.instructions[name].arrays
    ]
    known = len(parameters) == sum(used)
    read, unread = [], []
    for (name, x), reads in zip(_named(arguments), used, strict=True):
        nbytes, dtype, shape = _lies(x)
        if reads:  # the compiler is given these, in order, and pads them
            padded = parameters[len(read)].padded_bytes if known else 0
            read.append(Buffer(name, "argument", max(nbytes, padded), dtype, shape))
        else:
            unread.append(Buffer(name, "argument", nbytes, dtype, shape))
    return read, unread


def _named(arguments: dict[str, Any]) -> list[tuple[str, jax.ShapeDtypeStruct]]:
    """The leaves of trees with their paths; in the order of the trees, which that of a dict's leaves is not."""
    return [
        (f"{top}/{jax.tree_util.keystr(path, simple=True, separator='/')}".rstrip("/"), x)
        for top, tree in arguments.items()
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _lies(x: jax.ShapeDtypeStruct) -> tuple[int, str, tuple[int, ...]]:
    """Bytes, dtype and shape of what a device has of an array."""
    shape, itemsize = x.sharding.shard_shape(x.shape), 0
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), x.dtype))
        itemsize = data.size * data.dtype.itemsize
    return math.prod(shape) * (itemsize or np.dtype(x.dtype).itemsize), str(x.dtype), tuple(shape)


def _parts(arguments: list[Buffer]) -> dict[str, int]:
    parts = Counter()
    for buffer in arguments:
        parts["/".join(buffer.name.split("/")[:2])] += buffer.nbytes
    return dict(parts.most_common())


def _temporaries(refused: str, assigned: int) -> int:
    """What the compiler says the temporaries of a program take that it refuses, or what it has assigned to them."""
    said = re.search(r"temporaries \(([\d.]+)([KMGT]?)\)", refused)
    return int(float(said[1]) * 1024 ** " KMGT".index(said[2] or " ")) if said else assigned


def _flows(moved: Traffic, mesh: jax.sharding.Mesh, topology: Topology) -> tuple[Flow, ...]:
    alike: dict[tuple, list[tuple[Collective, int]]] = {}
    for collective, times in moved.collectives.items():
        alike.setdefault((collective.kind, collective.axes, collective.dcn), []).append((collective, times))
    flows = []
    for (kind, axes, dcn), those in alike.items():
        sent = math.fsum(times * c.sent for c, times in those)
        if kind == "collective-permute":  # rings may turn both ways at once, over one link each
            upwards = math.fsum(times * c.sent for c, times in those if c.upwards)
            there = sent / max(upwards, sent - upwards)
        else:
            there = links(topology, _group(mesh, axes, topology.slices))
        payload, count = sum(times * c.payload for c, times in those), sum(times for _, times in those)
        flows.append(Flow(kind, axes, dcn, 0.0 if dcn else there, count, payload, sent))
    return tuple(sorted(flows, key=lambda flow: -flow.sent))


def _group(mesh: jax.sharding.Mesh, axes: tuple[str, ...], slices: int) -> list:
    """The devices of the first slice that differ along these axes only."""
    within = [mesh.shape["data"] // slices, *mesh.devices.shape[1:]]
    at = tuple(slice(within[n]) if axis in axes else 0 for n, axis in enumerate(mesh.axis_names))
    return list(np.atleast_1d(mesh.devices[at]).ravel())


def _exchanges(moved: Traffic) -> tuple[Exchange, ...]:
    made = (
        Exchange(c.kind, c.axes, c.dcn, c.dtype, c.shape, c.op_name, times, times * c.sent)
        for c, times in moved.collectives.items()
    )
    return tuple(sorted(made, key=lambda one: -one.sent))


def _tuples(value: Any) -> Any:
    """JSON has no tuples; configs have nothing else."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return {name: _tuples(inside) for name, inside in value.items()} if isinstance(value, dict) else value


if __name__ == "__main__":
    main()
