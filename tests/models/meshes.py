"""The TPU kernel of attention, interpreted, on several meshes of forced CPU devices.

`on_meshes` runs this file as a script, because the number of devices is settled before JAX starts:

    python -m tests.models.meshes OUT.npz MESH...

where a MESH is "data,fsdp,tensor". Of each, OUT gets "MESH/CASE/y", the output, and "MESH/CASE/q", "k" and "v", the
gradients, of two cases: rows and heads that divide, and that do not.
"""

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mgie_jax.models.attention import attend_splash, on_mesh
from mgie_jax.sharding import make_mesh

CASES = {"even": (4, 4, 4), "odd": (3, 6, 3)}  # rows, heads, heads of keys and values
TOKENS, WIDTH = 128, 8


def on_meshes(out: Path, meshes: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """{mesh: {"even/y": ...}} of a process with four devices."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-m", "tests.models.meshes", out, *meshes]
    subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], check=True)
    found: dict[str, dict[str, np.ndarray]] = {mesh: {} for mesh in meshes}
    with np.load(out) as file:
        for key in file.files:
            mesh, what = key.split("/", 1)
            found[mesh][what] = file[key]
    return found


def main(out: str, *meshes: str) -> None:
    kernel = partial(on_mesh, partial(attend_splash, scale=0.5, causal=True, interpret=True))

    @jax.jit
    def run(q, k, v, valid):
        def loss(q, k, v):
            y = kernel(q, k, v, valid)
            return jnp.square(y).sum(), y

        (_, y), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return y, *gradients

    results = {}
    for name in meshes:
        sizes = [int(size) for size in name.split(",")]
        mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes)])
        for case, (rows, heads, kv_heads) in CASES.items():
            rng = np.random.default_rng(0)
            shapes = [(rows, count, TOKENS, WIDTH) for count in (heads, kv_heads, kv_heads)]
            arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
            valid = np.arange(TOKENS) < TOKENS - 20 * np.arange(rows)[:, None]
            with jax.set_mesh(mesh):
                found = run(*arrays, valid)
            results |= {f"{name}/{case}/{what}": np.asarray(x) for what, x in zip("yqkv", found, strict=True)}
    np.savez(out, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
