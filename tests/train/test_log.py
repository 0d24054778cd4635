"""The log: what a line holds, that no step appears twice, and that a kill at any moment harms nothing."""

import json
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from mgie_jax.cli.curves import read_metrics
from mgie_jax.train import log as module
from mgie_jax.train.log import Log, keep_until, read_lines


def metrics(loss, finite=True, **more):
    values = {"loss": loss, "L_ins": loss / 2, "grad_norm": 3.0, "grad_norm/unet": 2.0, **more}
    return {name: jnp.float32(value) for name, value in values.items()} | {"finite": jnp.asarray(finite)}


def steps(path):
    return [row["step"] for row in read_lines(path / "metrics.jsonl")]


def test_figures_are_means_over_the_interval(tmp_path):
    with Log(tmp_path, 0, 4, 8) as log:
        for loss in (1.0, 3.0):
            log.update(metrics(loss), 0.0, ())
        first = log.write(2, {"mllm": 5e-4, "default": 1e-4})
        for loss in (10.0, 20.0):
            log.update(metrics(loss), 0.0, ())
        log.write(4, {"mllm": 4e-4, "default": 0.0})
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4]
    assert [row["loss"] for row in rows] == [2.0, 15.0] and [row["L_ins"] for row in rows] == [1.0, 7.5]
    assert [row["learning_rate/mllm"] for row in rows] == [5e-4, 4e-4]
    assert rows[0]["grad_norm/unet"] == 2.0 and rows[0]["host_peak_gib"] > 0.05
    assert "finite" not in rows[0] and "mfu" not in rows[0]
    assert {"step": 2, **first} == rows[0]


def test_rates(tmp_path, monkeypatch):
    """Two of three steps ran after the first came back done; 0.25 of 0.5 seconds went on data."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(module, "device_peak", lambda: 1e3)
    with Log(tmp_path, 10, 20, 8, flops_per_example=5.0) as log:
        for wait in (50.0, 0.125, 0.125):  # the first batch was waited for while nothing could run
            log.update(jax.block_until_ready(metrics(1.0)), wait, ())
            clock.now += 0.25
        clock.now = 100.5
        figures = log.write(13, {})
        for _ in range(2):
            log.update(metrics(1.0), 0.0, ())
        clock.now += 4.0
        later = log.write(15, {})
    assert figures["steps_per_second"] == 4 and figures["examples_per_second"] == 32
    assert figures["data_wait"] == 0.5 and later["data_wait"] == 0.0
    assert figures["model_flops_per_second"] == 160.0
    assert figures["mfu"] == pytest.approx(0.16 / jax.device_count())
    assert later["steps_per_second"] == 0.5


def test_a_first_step_that_is_still_running_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ready", lambda metrics: False)
    with Log(tmp_path, 0, 1, 2) as log:
        log.update(metrics(1.0), 0.0, ())
        time.sleep(0.05)
        assert 0 < log.write(1, {})["steps_per_second"] <= 20


def test_steps_that_are_not_finite_are_counted_and_not_averaged(tmp_path):
    with Log(tmp_path, 0, 4, 1) as log:
        for loss, finite in ((1.0, True), (np.nan, False), (3.0, True)):
            log.update(metrics(loss, finite), 0.0, ())
        assert log.write(3, {})["loss"] == 2.0
        log.update(metrics(np.inf, False), 0.0, ())
        assert log.write(4, {})["loss"] == np.inf
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert [row["nonfinite_steps"] for row in rows] == [1, 1] and rows[1]["loss"] is None


def run(path, start, stop, every=2):
    with Log(path, start, stop, 1) as log:
        for step in range(start + 1, stop + 1):
            log.update(metrics(float(step)), 0.0, [(f"photo {step}", "is broken")])
            if step % every == 0:
                log.write(step, {})


@pytest.mark.parametrize("start, kept", [(6, [2, 4, 6, 8]), (4, [2, 4, 6, 8]), (5, [2, 4, 6, 8]), (0, [2, 4, 6, 8])])
@pytest.mark.parametrize("torn", [b"", b'{"step": 10, "lo', b'{"step": 10, "loss": 1.0', b"\x00\xff\x00"])
def test_a_resumed_run_repeats_no_step(tmp_path, start, kept, torn):
    run(tmp_path, 0, 9)
    for name in ("metrics.jsonl", "skipped.jsonl"):
        with open(tmp_path / name, "ab") as file:
            file.write(torn)
    run(tmp_path, start, 9)
    assert steps(tmp_path) == kept
    assert [row["step"] for row in read_lines(tmp_path / "skipped.jsonl")] == list(range(1, 10))
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert read_lines(tmp_path / "metrics.jsonl")[-1]["skipped"] == 8
    assert not list(tmp_path.glob(".*"))


def test_killed_while_the_lines_are_dropped_nothing_is_lost(tmp_path, monkeypatch):
    run(tmp_path, 0, 6)
    before = (tmp_path / "metrics.jsonl").read_bytes()

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    monkeypatch.setattr(module, "write_text", kill)
    with pytest.raises(Killed):
        keep_until(tmp_path / "metrics.jsonl", 4)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_curves_read_what_a_kill_left(tmp_path):
    run(tmp_path, 0, 4)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "loss": 0.')
    assert [row["step"] for row in read_metrics(tmp_path)] == [2, 4]
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "lo')
    with pytest.raises(ValueError, match="metrics.jsonl"):
        read_metrics(tmp_path)


def test_an_id_is_told_once(tmp_path):
    with Log(tmp_path, 0, 2, 1) as log:
        log.update(metrics(1.0), 0.0, [("a", "broken"), ("b", "too long")])
        log.update(metrics(1.0), 0.0, [("a", "broken")])
        assert log.write(2, {})["skipped"] == 2
    assert read_lines(tmp_path / "skipped.jsonl") == [
        {"step": 1, "id": "a", "reason": "broken"}, {"step": 1, "id": "b", "reason": "too long"}
    ]  # fmt: skip


def test_pictures(tmp_path):
    image = Image.new("RGB", (6, 4), "#102030")
    with Log(tmp_path, 0, 200, 1) as log:
        log.picture("grid", 100, image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid-000100.png")), np.asarray(image))
    assert {"grid"} == {value.tag for event in events(tmp_path) for value in event.summary.value}


def events(path):
    """TensorBoard's records: length (8 bytes), checksum (4), an event, checksum (4)."""
    found = []
    for file in sorted((path / "tensorboard").iterdir()):
        content = file.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            found.append(Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
    return found


def test_tensorboard_shows_the_same_figures(tmp_path):
    run(tmp_path, 0, 4)
    told = {(value.tag, event.step): value.simple_value for event in events(tmp_path) for value in event.summary.value}
    for row in read_lines(tmp_path / "metrics.jsonl"):
        for name, value in row.items():
            assert name == "step" or told[name, row["step"]] == pytest.approx(value)


def test_other_processes_write_no_metrics(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Log(tmp_path, 0, 2, 1) as log:
        log.update(metrics(2.0), 0.0, [("a", "broken")])
        assert log.write(1, {})["loss"] == 2.0
        log.picture("grid", 1, Image.new("RGB", (4, 4)))
    assert [path.name for path in tmp_path.iterdir()] == ["skipped-1.jsonl"]
    assert capfd.readouterr().err == ""


def test_the_bar_stands_where_the_run_does(tmp_path, capfd):
    with Log(tmp_path, 3, 8, 1) as log:
        for _ in range(5):
            log.update(jax.block_until_ready(metrics(0.25)), 0.0, ())
        assert log._bar.n == 8
        log.write(8, {})
    assert "8/8" in (shown := capfd.readouterr().err) and "loss=0.25" in shown


def test_weights_and_biases(tmp_path, monkeypatch):
    calls = []

    class Run:
        id = "abc"

        def log(self, figures, step):
            calls.append((step, figures))

        def finish(self, exit_code):
            calls.append(exit_code)

    def init(**arguments):
        calls.append(arguments)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Image=lambda image: ("picture", image.size)))
    for start in (0, 1):
        with Log(tmp_path, start, 2, 1, wandb="mgie") as log:
            log.update(metrics(1.0), 0.0, ())
            log.write(start + 1, {})
            log.picture("grid", start + 1, Image.new("RGB", (6, 4)))
    begun, line, picture, ended, again, *_ = calls
    assert begun["project"] == "mgie" and begun["id"] is None and again["id"] == "abc"
    assert line[0] == 1 and line[1]["loss"] == 1.0 and picture == (1, {"grid": ("picture", (6, 4))}) and ended == 0


def test_weights_and_biases_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="config.wandb.*'mgie'.*pip install wandb"):
        Log(tmp_path, 0, 1, 1, wandb="mgie")
