"""Trees, optimizer and the training step."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from mgie_jax.train.optimizer import make_optimizer
from mgie_jax.train.state import init_state, merge_params, split_params
from mgie_jax.train.step import make_step

PARAMS = {"mllm": {"model": {"w": np.ones(2), "v": np.zeros(3)}}, "unet": {"conv": {"kernel": np.ones(4)}}}


def config(**changes):
    return ml_collections.ConfigDict({
        "learning_rate": {"mllm": 1e-1, "default": 1e-2}, "steps": 20, "warmup": 0.1, "final_lr_fraction": 0.0,
        "b2": 0.99, "weight_decay": 0.0, "clip_norm": 1.0, **changes,
    })  # fmt: skip


def test_split_and_merge_are_inverse():
    trained, frozen = split_params(PARAMS, ["mllm/model/w", "unet/"])
    assert set(trained) == {"mllm", "unet"} and list(frozen["mllm"]["model"]) == ["v"]
    jax.tree.map(np.testing.assert_array_equal, merge_params(trained, frozen), PARAMS)


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match="'unett/' matches no parameter"):
        split_params(PARAMS, ["unett/"])


def test_each_side_has_its_learning_rate():
    optimizer = make_optimizer(config(steps=1000, warmup=0.001))
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = optimizer.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    finite = jnp.array(True)
    _, state = optimizer.update(grads, state, params, finite=finite)  # the first step of the warm-up has rate 0
    updates, _ = optimizer.update(grads, state, params, finite=finite)
    assert np.allclose(updates["mllm"]["model"]["w"], -1e-1, rtol=1e-2)
    assert np.allclose(updates["unet"]["conv"]["kernel"], -1e-2, rtol=1e-2)


def test_the_step_descends_averages_and_donates():
    def loss(trainable, frozen, batch, key):
        value = jnp.square(trainable["w"] - batch + frozen["b"]).sum()
        return value, {"loss": value}

    optimizer = make_optimizer(config(learning_rate={"default": 0.3}))
    state = init_state({"w": jnp.zeros(3)}, optimizer, ema=True)
    before = state
    step = make_step(loss, optimizer, 0.5)
    losses = []
    for _ in range(20):
        state, metrics = step(state, {"b": jnp.zeros(3)}, jnp.ones(3), jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.2 * losses[0]
    assert int(state.step) == 20
    assert before.params["w"].is_deleted()
    assert 0 < np.abs(state.ema["w"] - state.params["w"]).max() < 0.5
