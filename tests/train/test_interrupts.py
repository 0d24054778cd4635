"""Signals with several processes: told to one, all stop at the same update."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import mgie_jax
from mgie_jax.train import checkpoint

ROOT = Path(mgie_jax.__file__).parents[1]

SCRIPT = """
import os, signal, sys, time
import jax, jax.numpy as jnp, numpy as np
sys.path.insert(0, {tests!r})
from mgie_jax import distributed
from mgie_jax.sharding import make_mesh
from mgie_jax.train.interrupts import Preempted
from mgie_jax.train.loop import Task, fit

distributed.initialize(True)
import test_loop

def batch(number, rows):
    if number == 6 and jax.process_index() == 1:
        os.kill(os.getpid(), signal.{name})
    time.sleep(0.2)  # the notice reaches the others within a second
    return test_loop.examples(number, rows)

def loss(trainable, frozen, batch, key):
    value = jnp.square(trainable["edit_head"]["query"] - batch.mean()).mean()
    return value, {{"loss": value}}

task = Task({{"edit_head": {{"query": np.zeros((4, 6), np.float32)}}}}, {{}}, loss, batch)
try:
    fit(task, test_loop.config(steps=60, checkpoint_every=100), {workdir!r}, make_mesh((1, -1, 1)))
except BaseException as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(("name", "raised"), [("SIGTERM", "Preempted"), ("SIGINT", "KeyboardInterrupt")])
def test_a_signal_to_one_process_stops_all_together(tmp_path, name, raised):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    script = SCRIPT.format(tests=str(Path(__file__).parent), name=name, workdir=str(tmp_path))
    place = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, env=os.environ | place | {"JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    ended = [process.communicate(timeout=240) for process in processes]
    assert [out.split()[-1:] for out, _ in ended] == [["Preempted"], [raised]], ended
    # One checkpoint, made by both: had they stopped apart, the saving would have waited for ever.
    (step,) = checkpoint.steps(tmp_path)
    assert 0 < step < 60  # batch 6 is made some updates ahead
    assert checkpoint.read_weights(tmp_path)["edit_head"]["query"].shape == (4, 6)
