"""Facts as a compiler might tell them, in round numbers."""

from dataclasses import replace

from mgie_jax.plan.ahead import Request
from mgie_jax.plan.buffers import Buffer
from mgie_jax.plan.facts import Exchange, Facts, Flow, Memory
from mgie_jax.plan.machines import GIB, parse_topology
from mgie_jax.plan.plan import Plan

FACTS = Facts(
    name="train",
    examples=64,
    runs=1,
    mesh={"data": 1, "fsdp": 16, "tensor": 1},
    memory=Memory(arguments=4 * GIB, unread=GIB, outputs=2 * GIB, aliased=2 * GIB, temporaries=8 * GIB, code=0),
    parts={"state/params": 4 * GIB, "frozen/vae": GIB},
    buffers=(
        Buffer("jit(step)/<dot>", "temporary", 2 * GIB, "bfloat16", (8, 4096)),
        Buffer("state/params/unet/kernel", "argument", GIB, "float32", (4, 4)),
    ),
    flops=197e12 * 2,
    shared_flops=197e12,
    model_flops=197e12 / 2,
    hbm_bytes=819 * 10**9,
    moves=(("jit(step)/dot", 10**9),),
    flows=(
        Flow("all-gather", ("fsdp",), False, 2.0, 4, 2 * 10**11, 10**11 * 1.0),
        Flow("all-reduce", ("data",), True, 0.0, 1, 10**9, 3.125e9),
    ),
    exchanges=(Exchange("all-gather", ("fsdp",), False, "bf16", (8, 4096), "jit(step)/gathered", 4, 1e11),),
    while_turns=0,
    refused="",
    trace_s=1.0,
    compile_s=2.0,
)
CONFIG = {"accumulate": 1, "remat": "none", "batch_size": 64, "mesh": [1, -1, 1]}
REQUEST = Request(CONFIG, "train", "v5e:4x4", 1, (1, 16, 1), None)


def memory(total_gib, temporaries_gib):
    rest = int((total_gib - temporaries_gib) * GIB)
    return Memory(rest, 0, 0, 0, int(temporaries_gib * GIB), 0)


def plan(request=REQUEST, **changes):
    """A plan of `FACTS` with changes."""
    whole = parse_topology(request.topology).machine.hbm_bytes
    return Plan(request, (replace(FACTS, **changes),), whole)
