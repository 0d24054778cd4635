"""`mgie edit` of many photos as people run it: killed again and again, on several devices, by several processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mgie_jax
from mgie_jax.batch import store
from tests.batch.painting import picture
from tests.batch.test_batch_run import assert_whole_though_killed, photos, undisturbed  # noqa: F401

pytestmark = pytest.mark.slow

ROOT = Path(mgie_jax.__file__).parents[1]
KILLS, PHOTOS = 8, 24


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos of two sizes, and a broken one."""
    folder = tmp_path_factory.mktemp("edits")
    (folder / "in").mkdir()
    for i in range(PHOTOS):
        picture(folder / "in" / f"p{i:02}.png", i, (40, 40) if i % 4 else (80, 40))
    (folder / "in" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    return folder


def start(place, out, model, *more, before=(sys.executable, "-m", "mgie_jax.cli"), **environment):
    command = [*before, "edit", place / "in", "brighter", "-o", out, "--model", model, "--seed", "3", "--html",
               "--batch-size", "4", "--json", *more]  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process):
    out, err = process.communicate(timeout=900)
    assert process.returncode == 3, err  # of the broken one
    return out


def pictures(out):
    return {path.name: np.asarray(Image.open(path), np.int16) for path in sorted(out.glob("*.png"))}


def lines(out):
    found = store.read(out, store.RESULTS).values()
    return [{name: line[name] for name in ("output", "instruction", "expressive", "seed", "size")} for line in found]


def assert_like(out, whole):
    got, expected = pictures(out), pictures(whole)
    assert got.keys() == expected.keys() and len(got) == PHOTOS
    # Which photos share a batch differs, and with it the last bits.
    assert max(np.abs(got[name] - expected[name]).max() for name in got) <= 1
    assert lines(out) == lines(whole)
    assert list(store.read(out, store.ERRORS)) == ["broken.png"]
    left = {path.name for path in out.iterdir()} - set(got)
    assert left == {"before", "errors.jsonl", "index.html", "results.jsonl", "settings.json"}
    assert len(list((out / "before").iterdir())) == PHOTOS


@pytest.fixture(scope="module")
def whole(place, tiny_model_dir):
    finish(start(place, place / "whole", tiny_model_dir))  # compiles
    for path in (place / "whole").glob("*.jsonl"):
        path.unlink()
    began = time.monotonic()
    finish(start(place, place / "whole", tiny_model_dir, "--overwrite"))
    return place / "whole", time.monotonic() - began


def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(place, tiny_model_dir, whole):
    expected, seconds = whole
    out, killed, begun, random_ = place / "killed", 0, 0, random.Random(1)
    while True:
        process = start(place, out, tiny_model_dir, "--batch-size", "2")
        if killed < KILLS:
            time.sleep(random_.uniform(0.3 * seconds, 1.0 * seconds))
            process.kill()
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 3
            break
        killed += 1
        known = len(store.read(out, store.RESULTS)) if out.exists() else 0
        assert known >= begun  # what was written down stays
        begun = known
    assert killed
    assert_like(out, expected)


def test_killed_without_a_model_at_many_more_moments(photos, undisturbed, tmp_path):  # noqa: F811
    assert_whole_though_killed(photos, tmp_path / "out", 60, undisturbed)


@pytest.mark.parametrize("mesh", [(), ("--mesh=2,1,2",)])
def test_four_devices_draw_what_one_does(place, tiny_model_dir, whole, mesh):
    out = place / f"devices{len(mesh)}"
    flags = "--xla_force_host_platform_device_count=4"
    finish(start(place, out, tiny_model_dir, *mesh, NPROC="32", XLA_FLAGS=flags))
    assert_like(out, whole[0])


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_draw_what_one_does(place, tiny_model_dir, whole, count):
    out = place / f"processes-{count}"
    launch = (sys.executable, ROOT / "launch" / "local.py", "--processes", str(count), "--",
              sys.executable, "-m", "mgie_jax.cli")  # fmt: skip
    printed = finish(start(place, out, tiny_model_dir, before=launch))
    (answer,) = (line for line in printed.splitlines() if "{" in line)
    answer = json.loads(answer.partition("] ")[2])
    assert (answer["edited"], answer["skipped"], answer["failed"]) == (PHOTOS, 0, 1)
    assert_like(out, whole[0])
    # Another number of processes goes on with it.
    for name in ("p00.png", "p23.png"):
        (out / name).unlink()
    answer = json.loads(finish(start(place, out, tiny_model_dir)))
    assert (answer["edited"], answer["skipped"], answer["failed"]) == (2, PHOTOS - 2, 1)
    assert_like(out, whole[0])
