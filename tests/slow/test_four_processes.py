"""`mgie train` as two and four processes: the losses, pictures and weights of one; killed, and resumed by others."""

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
from PIL import Image

import mgie_jax
from mgie_jax import cli
from mgie_jax.train.checkpoint import read_weights, steps

pytestmark = pytest.mark.slow

ROOT = Path(mgie_jax.__file__).parents[1]
STEPS, BATCH = 6, 4
FLAGS = "--xla_backend_optimization_level=0"  # compiles in half the time, computes the same to rounding


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model_dir):
    """Where the runs are; in it `photos`, and `data`, the same photos' edits as a data set."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "source").mkdir()
    rng = np.random.default_rng(0)
    for i in range(24):
        hills = np.cumsum(np.cumsum(rng.normal(0, 1, (200, 260, 3)), 0), 1)
        hills = (hills - hills.min()) / (hills.max() - hills.min()) * 215 + rng.normal(20, 6, hills.shape)
        Image.fromarray(np.clip(hills, 0, 255).astype(np.uint8)).save(folder / "source" / f"{i}.png")
    heldout = ["--heldout", "*/3.png", "*/4.png", "*/5.png", "*/6.png"]
    assert cli.main(["data", "photos", str(folder / "photos"), str(folder / "source"), *heldout]) == 0
    build = ["data", "build", "generated", str(folder / "photos"), str(folder / "data"), "--examples", "40"]
    assert cli.main([*build, "--size", "32", "--split", "train"]) == 0
    shutil.copytree(tiny_model_dir, folder / "init")
    return folder


def start(folder, name, processes, *more, stage="joint"):
    command = [sys.executable, "-m", "mgie_jax.cli", "train", "--config", f"configs/test.py:{stage}"]
    command += ["--workdir", folder / name, f"--config.init={folder / 'init'}", f"--config.steps={STEPS}"]
    command += [f"--config.batch_size={BATCH}", "--config.ema_decay=0.9", "--config.checkpoint_every=2"]
    command += ["--config.keep_checkpoints=10", f"--config.photos={folder / 'photos'}", *more]
    if processes > 1:
        command = [sys.executable, ROOT / "launch" / "local.py", "--processes", str(processes), "--", *command]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": FLAGS}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def finish(*arguments, **more):
    run = start(*arguments, **more)
    out, err = run.communicate(timeout=3600)
    assert run.returncode == 0, err
    return out


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return np.array([[row["L_ins"], row["L_edit"], row["grad_norm"]] for row in rows])


@pytest.fixture(scope="module")
def one(folder):
    finish(folder, "one", 1, "--config.grid_every=3")
    return folder / "one"


@pytest.mark.parametrize(("processes", "mesh"), [(2, "(1,2,1)"), (4, "(2,2,1)"), (4, "(1,2,2)")])
def test_several_processes_train_as_one(folder, one, processes, mesh):
    name = f"{processes}-{mesh}"
    out = finish(folder, name, processes, f"--config.mesh={mesh}", "--config.grid_every=3")
    np.testing.assert_allclose(losses(folder / name), losses(one), rtol=1e-4)
    assert f"Trained model: {folder / name / 'model'}" in out
    pictures = [np.asarray(Image.open(run / "grid-000006.png"), np.int32) for run in (folder / name, one)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 8
    for ema in (False, True):
        many, single = (flatten_dict(read_weights(run, ema=ema), sep="/") for run in (folder / name, one))
        assert many.keys() == single.keys()
        for path in single:
            scale = max(1e-3, np.abs(single[path]).max())
            assert np.abs(many[path] - single[path]).max() <= 2e-3 * scale, path


def test_four_processes_one_killed_then_two_go_on(folder, one):
    run = start(folder, "killed", 4, "--config.mesh=(2,2,1)")
    until = time.monotonic() + 3000
    while not steps(folder / "killed") and run.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(children[2]), signal.SIGKILL)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 137 and "process 2 was killed by SIGKILL" in err and "all processes have stopped" in err
    assert steps(folder / "killed")[-1] < STEPS
    finish(folder, "killed", 2, "--config.mesh=(1,2,1)")
    np.testing.assert_allclose(losses(folder / "killed"), losses(one), rtol=1e-4)


def test_sigterm_saves_and_the_run_goes_on_bitwise(folder):
    more = ["--config.steps=100", "--config.checkpoint_every=20"]
    finish(folder, "whole", 2, *more, stage="mllm")
    run = start(folder, "told", 2, *more, stage="mllm")
    while run.poll() is None and not steps(folder / "told"):
        time.sleep(0.02)
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=600)
    assert run.returncode == 75 and steps(folder / "told")[-1] < 100, err
    finish(folder, "told", 2, *more, stage="mllm")
    whole, told = (flatten_dict(read_weights(folder / name), sep="/") for name in ("whole", "told"))
    for path in whole:
        np.testing.assert_array_equal(told[path], whole[path])
    sums = [(folder / name / "model" / "SHA256SUMS").read_bytes() for name in ("whole", "told")]
    assert sums[0] == sums[1]


def test_a_data_set_gives_the_same_examples_to_two_processes(folder):
    more = [f"--config.data={folder / 'data'}", "--config.workers=1"]
    finish(folder, "data-1", 1, *more, stage="mllm")
    finish(folder, "data-2", 2, *more, stage="mllm")
    rows = [
        [json.loads(line)["L_ins"] for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("data-1", "data-2")
    ]
    np.testing.assert_allclose(*rows, rtol=1e-4)
