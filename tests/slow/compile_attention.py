"""A transformer of the UNet at 64x64 latents, compiled for v5e:2x2 with attention's kernel and without it.

    python -m tests.slow.compile_attention edit|train

with libtpu importable: `edit` is forward on one chip, of the three rows of a guided edit; `train` is forward and
backward, rematerialised, on a mesh that splits its four rows and its heads in two. Prints one line of JSON, {"kernel":
..., "plain": ...}, of each the bytes of "temporaries" on a chip and how many "kernels" its program calls.
"""

import json
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec, use_abstract_mesh

from mgie_jax.models import attention
from mgie_jax.models.common import remat
from mgie_jax.models.unet import Transformer2DModel, UNetConfig
from mgie_jax.sharding import batch_sharding, make_mesh

SIDE, TOKENS = 64, 77


def compiled(task: str) -> dict[str, int]:
    devices = topologies.get_topology_desc(topology_name="v5e:2x2", platform="tpu").devices
    mesh = make_mesh((1, 1, 1), devices[:1]) if task == "edit" else make_mesh((1, 2, 2), devices)
    rows, policy = (3, "none") if task == "edit" else (4, "blocks")
    config = UNetConfig()
    width = config.block_out_channels[0]
    block = remat(Transformer2DModel, policy)(config.attention_head_dim, config.norm_num_groups, jnp.bfloat16)
    shapes = (rows, SIDE, SIDE, width), (rows, TOKENS, config.cross_attention_dim)
    x, context = (jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=batch_sharding(mesh)) for shape in shapes)
    whole = NamedSharding(mesh, PartitionSpec())
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=whole),
        jax.eval_shape(block.init, jax.random.key(0), x, context),
    )

    def loss(params, x, context):
        return jnp.square(block.apply(params, x, context).astype(jnp.float32)).mean()

    run = block.apply if task == "edit" else jax.value_and_grad(loss, argnums=(0, 1, 2))
    with use_abstract_mesh(mesh.abstract_mesh):
        program = jax.jit(run).lower(params, x, context).compile()
    return {
        "temporaries": program.memory_analysis().temp_size_in_bytes,
        "kernels": program.as_text().count('custom_call_target="tpu_custom_call"'),
    }


def main(task: str) -> None:
    found = {"kernel": compiled(task)}
    attention.KERNEL_FROM = SIDE**2 + 1
    jax.clear_caches()
    print(json.dumps(found | {"plain": compiled(task)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
