"""The joint step of mgie_7b compiled for a pod that is described and not there; a script of the tests.

    python -m tests.slow.compile_full_size TOPOLOGY DATA,FSDP,TENSOR [HLO_FILE]

with libtpu importable and a TOPOLOGY such as v5e:4x4. Prints one line of JSON: "gathers", what the all-gathers of the
program make and where ([dtype, shape, "in a loop" or the computation]), "stacked", the shapes of the frozen weights
that lead with a layer axis, and on each chip the bytes of "arguments", "aliased" (arguments whose memory the results
take over), "state" and "temporaries". HLO_FILE gets the whole program, to look for what an unwanted gather is for.
"""

import json
import math
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
from flax.traverse_util import flatten_dict
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from mgie_jax.models import presets
from mgie_jax.models.mgie import MGIE
from mgie_jax.sharding import batch_sharding, make_mesh, param_shardings, state_shardings
from mgie_jax.train.loss import EditPairBatch, TextBatch, make_joint_loss
from mgie_jax.train.state import init_state, make_optimizer, split_params
from mgie_jax.train.step import make_step

TRAINED = ("mllm/model/embed_tokens/", "mllm/lm_head/", "edit_head/", "unet/")
ROWS, TOKENS, SIDE = 16, 512, 256
OPTIMIZER = ml_collections.ConfigDict(
    {
        "learning_rate": {"mllm": 5e-4, "default": 1e-4}, "steps": 1000, "warmup": 0.03, "final_lr_fraction": 0.0,
        "b2": 0.999, "weight_decay": 0.0, "clip_norm": 1.0,
    }
)  # fmt: skip


def placed(shapes, shardings):
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings)


def bytes_a_chip(tree) -> int:
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def all_gathers(program: str) -> list[tuple[str, list[int], str]]:
    """Of compiled HLO: what each all-gather makes, and where."""
    found, calls, bodies, computation = [], {}, set(), ""
    for line in program.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            computation = head[1]
        calls.setdefault(computation, set()).update(re.findall(r"(?:calls|to_apply|body)=%?([\w.\-]+)", line))
        bodies.update(re.findall(r"\bbody=%?([\w.\-]+)", line))
        if op := re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) all-gather(?:-start)?\(", line):
            dtype, sizes = re.findall(r"(\w+)\[([\d,]*)\]", op[1])[-1]
            found.append((dtype, [int(size) for size in sizes.split(",") if size], computation))
    while more := {name for body in bodies for name in calls.get(body, ())} - bodies:
        bodies |= more
    return [(dtype, shape, "in a loop" if where in bodies else where) for dtype, shape, where in found]


def main(topology: str, sizes: str, hlo: str = "") -> None:
    devices = topologies.get_topology_desc(topology_name=topology, platform="tpu").devices
    mesh = make_mesh([int(size) for size in sizes.split(",")], devices)
    config = presets.mgie_7b()
    model = MGIE(config, jnp.bfloat16, "blocks")
    trained, frozen = split_params(model.shapes(), TRAINED)
    frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), frozen)
    frozen = placed(frozen, param_shardings(frozen, mesh))
    optimizer = make_optimizer(OPTIMIZER)
    state = jax.eval_shape(lambda params: init_state(params, optimizer, ema=True), trained)
    shardings = state_shardings(state, mesh)
    state = placed(state, shardings)

    def rows(dtype, *shape):
        return jax.ShapeDtypeStruct((ROWS, *shape), dtype, sharding=batch_sharding(mesh))

    seen = config.mllm.vision.image_size
    text = TextBatch(
        rows(jnp.int32, TOKENS), rows(bool, TOKENS), rows(jnp.int32, TOKENS), rows(jnp.float32, seen, seen, 3)
    )
    batch = EditPairBatch(text, *(rows(jnp.float32, SIDE, SIDE, 3) for _ in range(2)))
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct((), key.dtype, sharding=NamedSharding(mesh, PartitionSpec()))
    loss = make_joint_loss(model, config.mllm.llm.vocab_size - 8)
    step = make_step(loss, optimizer, 0.999, shardings=shardings)
    compiled = step.lower(state, frozen, batch, key).compile()
    if hlo:
        Path(hlo).write_text(compiled.as_text())
    memory = compiled.memory_analysis()
    stacked = sorted({x.shape for path, x in flatten_dict(frozen, sep="/").items() if "/layers/" in path})
    print(
        json.dumps(
            {
                "gathers": all_gathers(compiled.as_text()), "stacked": stacked,
                "arguments": memory.argument_size_in_bytes, "aliased": memory.alias_size_in_bytes,
                "state": bytes_a_chip(state), "temporaries": memory.temp_size_in_bytes,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
