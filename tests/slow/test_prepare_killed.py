"""`mgie prepare` as people run it: killed again and again, on several devices, by several processes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mgie_jax
from mgie_jax.data.records import load
from tests.data.preparing import examples, write
from tests.data.test_prepare import contents_of, kill_at_random_moments
from tests.weights.t5_files import write_t5

pytestmark = pytest.mark.slow

ROOT = Path(mgie_jax.__file__).parents[1]
KILLS = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a data set and a summarizer."""
    folder = tmp_path_factory.mktemp("prepare")
    write(folder / "data", {"train": examples(60), "test": examples(7, "test")})
    write_t5(folder / "t5")
    return folder


def start(place, out, model, *more, before=(sys.executable, "-m", "mgie_jax.cli"), **environment):
    command = [*before, "prepare", place / "data", out, "--model", model, "--summarizer", place / "t5",
               "--batch-size", "4", "--max-new-tokens", "24", *more]  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process):
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def undisturbed(place, tiny_model_dir):
    began = time.monotonic()
    finish(start(place, place / "whole", tiny_model_dir))
    return contents_of(place / "whole"), time.monotonic() - began


def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(place, tiny_model_dir, undisturbed):
    whole, seconds = undisturbed
    out, killed, random_ = place / "killed", 0, random.Random(1)
    while True:
        process = start(place, out, tiny_model_dir)
        if killed < KILLS:
            # From soon after its imports to past its end.
            time.sleep(random_.uniform(0.4 * seconds, 1.1 * seconds))
            process.kill()
        _, err = process.communicate()
        if process.returncode == -signal.SIGKILL:
            killed += 1
        else:
            assert process.returncode == 0, err
            assert contents_of(out) == whole
            if killed >= KILLS:
                break
            for path in out.iterdir():
                path.unlink()
            out.rmdir()


def test_killed_without_a_model_at_many_more_moments(place, tmp_path):
    from mgie_jax.data.prepare import prepare
    from tests.data.preparing import Parrot, settings

    data = place / "data"
    prepare(data, tmp_path / "whole", settings(data), Parrot(2))
    assert kill_at_random_moments(data, tmp_path / "out", 60, contents_of(tmp_path / "whole")) >= 60


@pytest.mark.parametrize("mesh", ["8,1,1", "2,2,2", "1,1,8"])
def test_eight_devices_write_what_one_does(place, tiny_model_dir, undisturbed, mesh):
    out = place / f"mesh-{mesh}"
    process = start(
        place,
        out,
        tiny_model_dir,
        f"--mesh={mesh}",
        NPROC="32",
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
    )
    finish(process)
    assert [e.expressive for e in load(out, "train")] == [e.expressive for e in load(place / "whole", "train")]


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_write_what_one_does(place, tiny_model_dir, undisturbed, count):
    out = place / f"processes-{count}"
    launch = (sys.executable, ROOT / "launch" / "local.py", "--processes", str(count), "--",
              sys.executable, "-m", "mgie_jax.cli")  # fmt: skip
    printed = finish(start(place, out, tiny_model_dir, before=launch))
    assert contents_of(out) == undisturbed[0]
    assert printed.count("Data set:") == 1 and not Path(f"{out}.parts").exists()
