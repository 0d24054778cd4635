"""A run killed without warning, again and again, ends with the very bits of one that was left alone."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mgie_jax
from mgie_jax import cli
from mgie_jax.train import checkpoint
from mgie_jax.train.log import read_lines
from mgie_jax.weights.atomic import sha256

ROOT = Path(mgie_jax.__file__).parents[1]
KILLS, STEPS = 24, 120
# What is compiled need not be fast, only always the same.
QUICK = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def command(tmp_path_factory, tiny_model_dir):
    """`command(workdir)`: many short steps from the tiny model, a checkpoint at every other one."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    (folder / "source").mkdir()
    for i in range(24):
        hills = np.cumsum(np.cumsum(rng.normal(0, 1, (200, 260, 3)), 0), 1)
        hills = (hills - hills.min()) / (hills.max() - hills.min()) * 215 + rng.normal(20, 6, hills.shape)
        Image.fromarray(np.clip(hills, 0, 255).astype(np.uint8)).save(folder / "source" / f"{i}.png")
    assert cli.main(["data", "photos", str(folder / "photos"), str(folder / "source")]) == 0
    values = {
        "photos": folder / "photos", "init": tiny_model_dir, "steps": STEPS, "checkpoint_every": 2,
        "keep_checkpoints": 2, "keep_every": 50, "ema_decay": 0.9, "log_every": 1,
    }  # fmt: skip
    config = ["--config", ROOT / "configs/test.py", *(f"--config.{name}={value}" for name, value in values.items())]
    return lambda workdir: [sys.executable, "-m", "mgie_jax.cli", "train", "--workdir", workdir, *config]


def saving(workdir) -> list[str]:
    """Names of half-written checkpoints."""
    folder = workdir / "checkpoints"
    return [name for name in (os.listdir(folder) if folder.is_dir() else ()) if not name.isdecimal()]


def log_file(workdir) -> tuple[int, int]:
    """(inode, lines) of the metrics: each start of a run writes the file anew."""
    path = workdir / "metrics.jsonl"
    return (path.stat().st_ino, path.read_bytes().count(b"\n")) if path.exists() else (0, 0)


def wait_for(moment: str, process, workdir, rng) -> None:
    """Until `process`, just started, is at a random point of its start, of a step, or of a save."""
    if moment == "start":
        return time.sleep(rng.uniform(0, 8))
    before, _ = log_file(workdir)
    wait(process, lambda: log_file(workdir)[0] != before)
    _, lines = log_file(workdir)
    steps = rng.integers(1, 8)
    wait(process, lambda: log_file(workdir)[1] >= lines + steps)
    if moment == "save":
        wait(process, lambda: saving(workdir))
        time.sleep(rng.uniform(0, 0.03))
    else:
        time.sleep(rng.uniform(0, 0.2))


def wait(process, reached, seconds=600):
    """Until `reached()`, or the process has ended."""
    begun = time.monotonic()
    while process.poll() is None and not reached():
        assert time.monotonic() - begun < seconds
        time.sleep(0.0005)


def test_a_run_killed_at_random_ends_with_the_same_bits(command, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), cwd=ROOT, env=QUICK, check=True, capture_output=True)

    rng, moments = np.random.default_rng(0), itertools.cycle(("start", "step", "save", "save"))
    kills, in_saves, errors = 0, 0, tmp_path / "errors"
    while True:
        with open(errors, "w") as file:
            process = subprocess.Popen(command(killed), cwd=ROOT, env=QUICK, stdout=subprocess.DEVNULL, stderr=file)
        if kills < KILLS:
            wait_for(next(moments), process, killed, rng)
            alive = process.poll() is None
            process.send_signal(signal.SIGKILL)
        code = process.wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL and alive, errors.read_text()
        assert "damaged" not in errors.read_text()  # a killed save leaves nothing that looks like a checkpoint
        kills += 1
        in_saves += bool(saving(killed))
    assert kills >= 20 and in_saves >= 5, (kills, in_saves)

    assert checkpoint.steps(killed) == checkpoint.steps(whole) and checkpoint.steps(whole)[-1] == STEPS
    for ema, step in itertools.product((False, True), checkpoint.steps(whole)):
        a, b = (checkpoint.read_weights(workdir, step, ema) for workdir in (killed, whole))
        assert flat(a) == flat(b)
    files = [path.relative_to(whole) for path in (whole / "model").rglob("*.safetensors")]
    assert files and all(sha256(killed / path) == sha256(whole / path) for path in files)
    rows = [{name: row[name] for name in ("step", "loss", "grad_norm")} for row in read_lines(killed / "metrics.jsonl")]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows == [{name: row[name] for name in rows[0]} for row in read_lines(whole / "metrics.jsonl")]


def flat(tree: dict, path: str = "") -> dict[str, bytes]:
    if isinstance(tree, dict):
        return {key: value for name, sub in tree.items() for key, value in flat(sub, f"{path}/{name}").items()}
    return {path: tree.tobytes()}
