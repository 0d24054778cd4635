"""The loop: an interrupted run goes on as if nothing had happened."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from mgie_jax.train.loop import Task, fit


def config(**changes):
    return ml_collections.ConfigDict({
        "learning_rate": {"default": 0.05}, "steps": 12, "warmup": 0.1, "final_lr_fraction": 0.0, "b2": 0.99,
        "weight_decay": 0.0, "clip_norm": 1.0, "ema_decay": 0.9, "seed": 0, "prefetch": 2, "log_every": 1,
        "checkpoint_every": 4, "keep_checkpoints": 2, **changes,
    })  # fmt: skip


def task(on_batch=lambda number: None):
    def loss(trainable, frozen, batch, key):
        noise = jax.random.normal(key, trainable["w"].shape)
        value = jnp.square(trainable["w"] + 0.1 * noise - batch).mean()
        return value, {"loss": value}

    def batch(number):
        on_batch(number)
        return np.random.default_rng(number).standard_normal(5).astype(np.float32)

    return Task({"w": np.zeros(5, np.float32)}, {}, loss, batch)


def test_interrupted_and_resumed_is_uninterrupted(tmp_path):
    whole = fit(task(), config(), tmp_path / "whole")

    def interrupt(number):
        if number == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    part = fit(task(interrupt), config(), tmp_path / "parts")
    assert 0 < int(part.step) < 12
    resumed = fit(task(), config(), tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))


def test_a_finished_run_does_nothing_more(tmp_path):
    first = fit(task(), config(), tmp_path)
    again = fit(task(), config(), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    def poison(trainable, frozen, batch, key):
        value = trainable["w"].sum() / 0.0
        return value, {"loss": value}

    broken = Task({"w": np.ones(5, np.float32)}, {}, poison, lambda number: np.zeros(1))
    with pytest.raises(FloatingPointError, match="step 1"):
        fit(broken, config(), tmp_path)


def test_a_checkpoint_of_another_run_is_refused_in_a_sentence(tmp_path):
    fit(task(), config(steps=4), tmp_path)
    with pytest.raises(ValueError, match="begin in another workdir") as refused:
        fit(task(), config(learning_rate={"default": 0.05, "w": 0.01}), tmp_path)
    assert len(str(refused.value)) < 400
