"""The training step: parts of a batch, what is not finite, what metrics it tells."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from mgie_jax.models import presets
from mgie_jax.models.mgie import MGIE
from mgie_jax.text.prompt import IGNORE
from mgie_jax.train.loss import Counts, Prediction, count_labels, joint_loss, make_instruction_loss
from mgie_jax.train.optimizer import hold, make_optimizer
from mgie_jax.train.state import init_state, split_params
from mgie_jax.train.step import SplitLoss, make_step
from tests.train.meshes import make_batch

CONFIG = presets.test()
PLAIN = hold(optax.sgd(1.0))  # an update is minus the gradient


@pytest.fixture(scope="module")
def batch():
    return jax.tree.map(jnp.asarray, make_batch(CONFIG, 0))


def assert_close(a, b, tolerance=1e-5):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance * max(float(jnp.abs(y).max()), 1e-3), err_msg=str(path))


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulated_is_the_whole_batch(tiny_params, batch, parts):
    """Though every part has another number of labels."""
    trained, frozen = split_params({"mllm": tiny_params["mllm"]}, ["mllm/model/", "mllm/lm_head/"])
    loss = make_instruction_loss(MGIE(CONFIG))

    def after(accumulate):
        state = init_state(jax.tree.map(jnp.array, trained), PLAIN, ema=False)
        return make_step(loss, PLAIN, 0.0, accumulate=accumulate)(state, frozen, batch.text, jax.random.key(0))

    (whole, told), (accumulated, also_told) = after(1), after(parts)
    assert_close(also_told, told)
    grads = lambda state: jax.tree.map(jnp.subtract, state.params, trained)  # noqa: E731
    assert_close(grads(accumulated), grads(whole))


def test_parts_of_the_joint_loss_add_up(batch):
    """Two draws an example, and parts with other numbers of labels."""
    rng, labels = np.random.default_rng(0), batch.text.labels
    shapes = {
        "logits": (*labels.shape, 5), "states": (8, 8, 4), "guidance": (8, 3, 4), "null_guidance": (1, 3, 4),
        "output": (16, 2, 2, 4), "target": (16, 2, 2, 4),
    }  # fmt: skip
    said = Prediction(**{name: jnp.asarray(rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()})
    labels = jnp.where(labels == IGNORE, IGNORE, labels % 5)
    counts = Counts(count_labels(labels), 16)

    def part(examples):
        draws = np.ravel(2 * examples[:, None] + np.arange(2))
        rows = {name: getattr(said, name)[examples] for name in ("logits", "states", "guidance")}
        rows |= {name: getattr(said, name)[draws] for name in ("output", "target")}
        return joint_loss(said._replace(**rows), labels[examples], counts=counts)[1]

    summed = jax.tree.map(jnp.add, part(np.arange(0, 8, 2)), part(np.arange(1, 8, 2)))
    assert_close(summed, joint_loss(said, labels)[1])


def squares(trainable, frozen, rows, draws, counts):
    """Two draws an example."""
    value = jnp.square(trainable["a"]["w"] - jnp.repeat(rows, 2) + frozen["b"] * draws).mean() * len(rows) / counts
    return value, {"loss": value}


TOY = SplitLoss(draw=lambda key, batch: jax.random.normal(key, (2 * len(batch),)), count=len, value=squares)


OURS = make_optimizer(ml_collections.ConfigDict({
    "learning_rate": {"default": 0.1}, "steps": 20, "warmup": 0.0, "final_lr_fraction": 1.0, "b2": 0.99,
    "weight_decay": 0.01, "clip_norm": 1.0,
}))  # fmt: skip


def toy_step(loss=TOY, optimizer=PLAIN, **options):
    state = init_state({"a": {"w": jnp.full(1, 3.0)}, "z": jnp.zeros(2)}, optimizer, ema=True)
    return state, make_step(loss, optimizer, 0.9, **options)


def test_metrics_tell_the_norm_of_every_part_before_clipping():
    state, step = toy_step(optimizer=hold(optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))))
    state, metrics = step(state, {"b": 0.0}, jnp.zeros(4), jax.random.key(0))
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {"loss": 9.0, "grad_norm": 6.0, "grad_norm/a": 6.0, "grad_norm/z": 0.0, "finite": 1.0}
    )
    assert state.params["a"]["w"] == pytest.approx(3.0 - 1e-3, abs=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("optimizer", [hold(optax.adam(0.1)), OURS], ids=["optax", "ours"])
def test_what_is_not_finite_changes_nothing_but_the_count(optimizer, poison, accumulate):
    state, step = toy_step(optimizer=optimizer, accumulate=accumulate)
    state, metrics = step(state, {"b": 0.0}, jnp.ones(4), jax.random.key(0))
    assert metrics["finite"]
    before = jax.device_get(state)
    state, metrics = step(state, {"b": 0.0}, jnp.array([1.0, 1.0, poison, 1.0]), jax.random.key(0))
    assert not metrics["finite"] and int(state.step) == 2
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.replace(step=before.step)), before)
    state, metrics = step(state, {"b": 0.0}, jnp.ones(4), jax.random.key(0))
    assert metrics["finite"] and float(state.params["a"]["w"][0]) < float(before.params["a"]["w"][0])


def test_a_gradient_that_overflows_under_a_finite_loss_is_not_finite():
    def steep(trainable, frozen, batch, key):
        value = jnp.sqrt(jnp.abs(trainable["a"]["w"] - 3.0)).sum()  # its slope at 3 is infinite
        return value, {"loss": value}

    state, step = toy_step(steep)
    state, metrics = step(state, {}, jnp.zeros(4), jax.random.key(0))
    assert np.isfinite(metrics["loss"]) and not metrics["finite"]
    assert state.params["a"]["w"] == 3.0


def test_draws_are_those_of_the_whole_batch_and_of_the_step():
    def after(accumulate, updates):
        state, step = toy_step(accumulate=accumulate)
        for _ in range(updates):
            state, metrics = step(state, {"b": 1.0}, jnp.arange(8.0), jax.random.key(0))
        return float(metrics["loss"])

    assert after(4, 1) == pytest.approx(after(1, 1), rel=1e-6)
    assert after(4, 2) == pytest.approx(after(1, 2), rel=1e-6)


def test_a_batch_that_does_not_split_is_refused():
    state, step = toy_step(accumulate=3)
    with pytest.raises(ValueError, match="batch of 8 cannot be accumulated in 3"):
        step(state, {"b": 0.0}, jnp.zeros(8), jax.random.key(0))


def test_a_loss_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match="accumulate=2: this loss comes only whole"):
        make_step(lambda *_: None, PLAIN, 0.0, accumulate=2)


def test_the_compiled_step_reuses_every_buffer_of_the_state():
    state, step = toy_step(optimizer=optax.adam(0.1))
    compiled = step.lower(state, {"b": 0.0}, jnp.zeros(4), jax.random.key(0)).compile()
    assert compiled.memory_analysis().alias_size_in_bytes == sum(x.nbytes for x in jax.tree.leaves(state))
