"""What was saved on one mesh goes on on another: the same examples in the same order, the same losses."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import mgie_jax
from mgie_jax.train.log import read_lines

ROOT = Path(mgie_jax.__file__).parents[1]
MESHES = ("2,2,2", "none", "8,1,1", "1,2,4")

# One run on a single device, and one that is stopped every few updates and goes on on the next of the meshes.
SCRIPT = """
import json, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
sys.path.insert(0, {tests!r})
import test_loop
from mgie_jax.data.pipeline import HostBatch
from mgie_jax.sharding import make_mesh
from mgie_jax.train.loop import Task, fit

read = []

def batch(number, rows):
    at = np.arange(8 * number, 8 * number + 8)[rows]
    read.extend(at.tolist())
    return HostBatch(np.stack([np.random.default_rng(i).standard_normal(16, np.float32) for i in at]), (), ())

def loss(trainable, frozen, batch, key):
    kernel = trainable["edit_head"]["llm2hid"]["kernel"]
    noise = jax.random.normal(key, kernel.shape)
    value = jnp.square(batch @ (kernel + 0.1 * noise) - batch).mean()
    return value, {{"loss": value}}

def run(workdir, steps, mesh):
    params = {{"edit_head": {{"llm2hid": {{"kernel": np.zeros((16, 16), np.float32)}}}}}}
    task = Task(params, {{}}, loss, stopping(steps))
    config = test_loop.config(steps=12, batch_size=8, prefetch=1, checkpoint_every=2)
    devices = None if mesh == "none" else make_mesh([int(size) for size in mesh.split(",")])
    try:
        fit(task, config, Path(workdir), devices)
    except test_loop.Preempted:
        assert steps < 12
    else:
        assert steps == 12

def stopping(steps):
    def wrapped(number, rows):
        if number == steps:
            test_loop.os.kill(test_loop.os.getpid(), test_loop.signal.SIGTERM)
        return batch(number, rows)
    return wrapped

workdir, meshes = Path({workdir!r}), {meshes!r}
run(workdir / "whole", 12, "none")
assert sorted(set(read)) == list(range(96))
for at, mesh in enumerate(meshes):
    run(workdir / "parts", 12 if mesh == meshes[-1] else 3 * at + 3, mesh)
"""


def test_a_run_goes_on_on_any_mesh(tmp_path):
    script = SCRIPT.format(tests=str(Path(__file__).parent), workdir=str(tmp_path), meshes=MESHES)
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "NPROC": "32"}
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    whole, parts = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert [row["step"] for row in parts] == [row["step"] for row in whole] == list(range(1, 13))
    np.testing.assert_allclose([row["loss"] for row in parts], [row["loss"] for row in whole], rtol=1e-5)
