"""A run of two processes is the run of one; killed and started again, it is the run that nothing interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import mgie_jax
from mgie_jax.train.checkpoint import read_weights, steps

ROOT = Path(mgie_jax.__file__).parents[1]
LOCAL = ROOT / "launch" / "local.py"
STEPS = 20

pytestmark = pytest.mark.skipif(not LOCAL.is_file(), reason="not a source tree")


def start(workdir, processes=2, mesh="1,-1,1", broken="none"):
    command = [sys.executable, "-m", "tests.launch.small_run", workdir, str(STEPS), mesh, broken]
    if processes > 1:
        command = [sys.executable, LOCAL, "--processes", str(processes), "--", *command]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*arguments, **more):
    run = start(*arguments, **more)
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines], [json.loads(line)["step"] for line in lines]


def assert_same_bits(a, b):
    for ema in (False, True):
        one, other = (flatten_dict(read_weights(workdir, ema=ema)) for workdir in (a, b))
        assert one.keys() == other.keys()
        for path in one:
            np.testing.assert_array_equal(one[path], other[path])


def pids_of(run):
    """The launcher's children, as Linux lists them."""
    return [int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes by /proc")
def test_two_processes_killed_and_resumed(tmp_path):
    one, two, killed, elsewhere = (tmp_path / name for name in ("one", "two", "killed", "elsewhere"))
    finish(one, processes=1)
    finish(two)
    assert losses(two)[1] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(losses(two)[0], losses(one)[0], rtol=1e-5)

    run = start(killed)
    until = time.monotonic() + 200
    while not steps(killed) and run.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(pids_of(run)[1], signal.SIGKILL)
    _, err = run.communicate(timeout=100)
    assert run.returncode == 137 and "process 1 was killed by SIGKILL" in err and "all processes have stopped" in err
    assert 0 < steps(killed)[-1] < STEPS
    shutil.copytree(killed, elsewhere)

    finish(killed)
    assert_same_bits(killed, two)
    assert losses(killed) == losses(two)

    finish(elsewhere, processes=1, mesh="1,1,1")  # what two processes saved, one goes on with
    np.testing.assert_allclose(losses(elsewhere)[0], losses(one)[0], rtol=1e-5)
    assert losses(elsewhere)[1] == list(range(1, STEPS + 1))


def test_what_goes_wrong_in_one_process_ends_all_and_is_said_once(tmp_path):
    run = start(tmp_path, broken="1")
    _, err = run.communicate(timeout=200)
    assert run.returncode == 2 and "ValueError: photo.jpg is broken" in err
    assert "process 1 ended with exit code 2" in err and "all processes have stopped" in err
    assert steps(tmp_path) == [5]
