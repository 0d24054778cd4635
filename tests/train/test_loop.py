"""The loop: an interrupted run goes on as if nothing had happened, and what goes wrong is said exactly."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import mgie_jax
from mgie_jax.data.pipeline import HostBatch
from mgie_jax.train import checkpoint, loop
from mgie_jax.train.config import default_config
from mgie_jax.train.interrupts import Preempted
from mgie_jax.train.log import Log
from mgie_jax.train.loop import AHEAD, NonFinite, Task, fit
from mgie_jax.train.optimizer import schedules

STEPS = 12
ROOT = Path(mgie_jax.__file__).parents[1]


def config(**changes):
    made = default_config()
    made.update({
        "learning_rate": {"default": 0.05}, "steps": STEPS, "ema_decay": 0.9, "prefetch": 2, "batch_size": 2,
        "log_every": 1, "checkpoint_every": 4, **changes,
    })  # fmt: skip
    return made


def examples(number, rows):
    at = np.arange(2 * number, 2 * number + 2)[rows]
    values = np.stack([np.random.default_rng(i).standard_normal(5).astype(np.float32) for i in at])
    return HostBatch(values, tuple(f"example-{i}" for i in at), ())


def task(batch=examples, poisoned=(), **more):
    """Five numbers learn the mean of noise; update `k` of `poisoned` has a loss that is not a number."""

    def loss(trainable, frozen, batch, key):
        noise = jax.random.normal(key, trainable["w"]["kernel"].shape)
        value = jnp.square(trainable["w"]["kernel"] + 0.1 * noise - batch * frozen["scale"]).mean()
        bad = jnp.isin(batch[0, 0], jnp.array([examples(k, slice(None)).arrays[0, 0] for k in poisoned]))
        value = jnp.where(bad, jnp.nan, value)
        return value, {"loss": value}

    params = {"w": {"kernel": np.zeros(5, np.float32)}}
    return Task(params, {"scale": np.float32(1)}, loss, batch, **more)


def with_signal(number, at, before=lambda: None):
    """Batches of which making the one of update `at` sends this process a signal."""

    def batch(k, rows):
        if k == at:
            before()
            os.kill(os.getpid(), number)
        return examples(k, rows)

    return batch


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The state an uninterrupted run ends with."""
    return fit(task(), config(), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)])
def test_interrupted_and_resumed_is_uninterrupted(tmp_path, whole, number, error):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(error):
        fit(task(with_signal(number, at=6)), config(), tmp_path)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert 0 < checkpoint.steps(tmp_path)[-1] < STEPS
    assert_same(fit(task(), config(), tmp_path), whole)
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, STEPS + 1))


def test_a_resumed_run_reads_on_where_its_checkpoint_stands(tmp_path):
    read = []

    def batch(number, rows):
        made = examples(number, rows)
        read.extend(made.ids)
        return made

    with pytest.raises(Preempted):
        fit(task(with_signal(signal.SIGTERM, at=6)), config(), tmp_path)
    saved = checkpoint.steps(tmp_path)[-1]
    fit(task(batch), config(), tmp_path)
    assert read == [f"example-{i}" for i in range(2 * saved, 2 * STEPS)]


def test_workers_and_prefetch_change_nothing(tmp_path, whole):
    # A task for worker processes must be picklable: `examples` is.
    assert_same(fit(task(), config(workers=2, prefetch=3), tmp_path), whole)


def test_frozen_weights_and_unchanged_ones_are_left_alone(tmp_path):
    made = task()
    fit(made, config(), tmp_path)
    assert not made.params["w"]["kernel"].any()
    assert set(checkpoint.read_weights(tmp_path)) == {"w"}


def test_a_finished_run_does_nothing_more(tmp_path, whole):
    for _ in range(2):
        assert_same(fit(task(), config(), tmp_path), whole)


def test_a_longer_run_goes_on_from_a_finished_one(tmp_path):
    fit(task(), config(steps=4), tmp_path)
    assert int(fit(task(), config(steps=6), tmp_path).step) == 6


def test_after_a_damaged_checkpoint_the_run_is_the_same(tmp_path, whole, capfd):
    with pytest.raises(Preempted):
        fit(task(with_signal(signal.SIGTERM, at=10)), config(), tmp_path)
    *_, newest = checkpoint.steps(tmp_path)
    (tmp_path / f"checkpoints/{newest}/default/manifest.ocdbt").write_bytes(b"")
    assert_same(fit(task(), config(), tmp_path), whole)
    assert f"checkpoint {newest} is damaged" in capfd.readouterr().err
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("log_every", [1, 5])
@pytest.mark.parametrize("at", [1, 5, 11])
def test_a_loss_that_is_not_finite_stops_the_run_with_its_ids(tmp_path, at, log_every):
    """Also at the update before a save (5 -> step 6), and at the last."""
    changed = config(log_every=log_every, checkpoint_every=3)
    with pytest.raises(NonFinite, match=f"at step {at + 1};.*nonfinite-{at + 1:06d}.json"):
        fit(task(poisoned=(at, at + 1)), changed, tmp_path)
    files = [path.name for path in tmp_path.glob("nonfinite*")]
    assert files == [f"nonfinite-{at + 1:06d}.json"]
    found = json.loads((tmp_path / files[0]).read_text())
    assert found["step"] == at + 1 and found["ids"] == [f"example-{2 * at}", f"example-{2 * at + 1}"]
    assert found["metrics"]["loss"] == "nan"
    # Nothing that came after is on disk: started again, the run stops there again.
    assert all(step <= at for step in checkpoint.steps(tmp_path))
    with pytest.raises(NonFinite, match=f"at step {at + 1};"):
        fit(task(poisoned=(at,)), changed, tmp_path)


def test_or_the_update_is_skipped(tmp_path, capfd):
    state = fit(task(poisoned=(4, 7)), config(on_nonfinite="skip", log_every=3), tmp_path)
    assert int(state.step) == STEPS and np.isfinite(state.params["w"]["kernel"]).all()
    assert sorted(path.name for path in tmp_path.glob("nonfinite*")) == [f"nonfinite-00000{s}.json" for s in (5, 8)]
    assert "step 5 is not finite and was skipped" in capfd.readouterr().err
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path))


def test_the_logged_learning_rate_is_that_of_the_last_update_made(tmp_path):
    """A skipped update leaves optax's schedule where it is; so does the log, also after the run is resumed."""
    skipping = config(on_nonfinite="skip")
    with pytest.raises(Preempted):
        fit(task(with_signal(signal.SIGTERM, at=9), poisoned=(0, 4, 7)), skipping, tmp_path)
    fit(task(poisoned=(0, 4, 7)), skipping, tmp_path)
    rate = schedules(skipping)["default"]
    made = [0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 7, 8]  # updates before the last that was made
    assert [row["learning_rate/default"] for row in rows(tmp_path)] == [float(rate(count)) for count in made]


def test_the_parameters_a_run_began_with_are_not_kept(tmp_path):
    """The state has their memory, or what was restored takes their place."""
    made = task()
    start = {"w": {"kernel": jnp.zeros(5)}}
    for steps in (4, 6):
        given = replace(made, params=jax.tree.map(jnp.copy, start))
        fit(given, config(steps=steps), tmp_path)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.params))


def test_another_run_is_refused_before_it_writes(tmp_path):
    fit(task(), config(steps=4), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    for changes in ({"batch_size": 4}, {"seed": 1}, {"data": "elsewhere"}):
        with pytest.raises(ValueError, match="begin in another workdir"):
            fit(task(), config(**changes), tmp_path)
    with pytest.raises(ValueError, match="begin in another workdir") as refused:
        fit(task(), config(learning_rate={"default": 0.05, "w": 0.01}), tmp_path)
    assert len(str(refused.value)) < 400
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_too_many_examples_skipped_stop_the_run(tmp_path):
    def batch(number, rows):
        made = examples(number, rows)
        return HostBatch(made.arrays, made.ids, tuple((f"broken-{number}-{i}", "no picture") for i in range(8)))

    with pytest.raises(ValueError, match="had to be skipped.*broken-1-7"):
        fit(task(batch), config(), tmp_path)
    assert "broken-0-0" in (tmp_path / "skipped.jsonl").read_text()


def test_a_grid_is_drawn_of_all_parameters(tmp_path):
    seen = []

    def grid(step, params):
        seen.append((step, sorted(params), float(np.abs(params["w"]["kernel"]).max())))
        return Image.new("RGB", (4, 4)) if step > 4 else None

    state = fit(task(grid=grid), config(grid_every=4), tmp_path)
    assert [(step, names) for step, names, _ in seen] == [(s, ["scale", "w"]) for s in (4, 8, 12)]
    assert seen[-1][2] == float(np.abs(state.ema["w"]["kernel"]).max())  # the averages, where there are any
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["grid-000008.png", "grid-000012.png"]


@pytest.mark.parametrize("window", [(1, 3), (10, 99)])
def test_a_window_of_updates_is_profiled(tmp_path, window):
    fit(task(), config(profile=window), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_the_host_is_ahead_of_the_devices_but_not_far(tmp_path, monkeypatch):
    losses, unfinished = [], []

    class Watching(Log):
        def update(self, metrics, *more):  # called right after an update is begun
            super().update(metrics, *more)
            losses.append(metrics["loss"])
            unfinished.append(sum(not value.is_ready() for value in losses))

    def loss(trainable, frozen, batch, key):
        slow = jax.lax.fori_loop(0, 30, lambda _, a: jnp.tanh(a @ a), jnp.ones((300, 300)))
        value = jnp.square(trainable["w"]["kernel"] - batch).mean() + 0.0 * slow.sum()
        return value, {"loss": value}

    monkeypatch.setattr(loop, "Log", Watching)
    params = {"w": {"kernel": np.zeros(5, np.float32)}}
    fit(Task(params, {}, loss, examples), config(steps=20, log_every=100, checkpoint_every=100), tmp_path)
    assert np.median(unfinished) >= 2 and max(unfinished) <= AHEAD + 2  # it shows a little later than `finite`


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_loop
from mgie_jax import cli
from mgie_jax.train import tasks

def train(config, workdir):
    batch = test_loop.with_signal(signal.{signal}, at=6)
    test_loop.fit(test_loop.task(batch, poisoned={poisoned}), test_loop.config(), workdir)

tasks.train = train
sys.exit(cli.main(["train", "--config", {config!r}, "--workdir", {workdir!r}]))
"""


@pytest.mark.parametrize(("name", "poisoned", "code", "said"), [
    ("SIGTERM", (), 75, "saved"), ("SIGINT", (), 130, "interrupted"), ("SIGTERM", (2,), 3, "not finite at step 3"),
])  # fmt: skip
@pytest.mark.skipif(not (ROOT / "configs").is_dir(), reason="not a source tree")
def test_exit_codes(tmp_path, name, poisoned, code, said):
    """75 is "try again" in sysexits.h; 3 is this program's own for a loss that is not finite."""
    values = {"tests": str(ROOT / "tests/train"), "config": str(ROOT / "configs/test.py"), "workdir": str(tmp_path)}
    script = SCRIPT.format(**values, signal=name, poisoned=poisoned)
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == code, ended.stderr
    assert said in ended.stderr and "Traceback" not in ended.stderr
    if not poisoned:
        assert 0 < checkpoint.steps(tmp_path)[-1] < STEPS


@pytest.mark.parametrize(("arguments", "window"), [([], ()), (["--profile"], (3, 6)),
                                                   (["--profile", "--config.profile=(8, 9)"], (8, 9))])  # fmt: skip
@pytest.mark.skipif(not (ROOT / "configs").is_dir(), reason="not a source tree")
def test_profile_option(tmp_path, monkeypatch, arguments, window):
    from mgie_jax import cli
    from mgie_jax.train import tasks

    def train(config, workdir):
        assert tuple(config.profile) == window
        raise Preempted

    monkeypatch.setattr(tasks, "train", train)
    path = str(ROOT / "configs/test.py")
    assert cli.main(["train", "--config", path, "--workdir", str(tmp_path), *arguments]) == 75
