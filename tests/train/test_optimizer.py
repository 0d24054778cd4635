"""Our AdamW is optax's, in place; that a step of it can be left out is in test_step.py."""

import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from mgie_jax.train.optimizer import make_optimizer, schedules
from mgie_jax.train.state import init_state
from mgie_jax.train.step import make_step

CONFIG = ml_collections.ConfigDict({
    "learning_rate": {"mllm": 1e-1, "default": 1e-2}, "steps": 20, "warmup": 0.1, "final_lr_fraction": 0.0,
    "b2": 0.99, "weight_decay": 0.1, "clip_norm": 1.0,
})  # fmt: skip
PARAMS = {"mllm": {"w": jnp.arange(6.0).reshape(2, 3)}, "unet": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}}
FINITE = jnp.array(True)


def gradients(step):
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape, np.float32)), PARAMS)


def test_it_is_optax_adamw():
    rates = schedules(CONFIG)
    adamw = {name: optax.adamw(rate, b2=CONFIG.b2, weight_decay=CONFIG.weight_decay) for name, rate in rates.items()}
    labels = {"mllm": {"w": "mllm"}, "unet": {"kernel": "default", "bias": "default"}}
    theirs = optax.chain(optax.clip_by_global_norm(CONFIG.clip_norm), optax.multi_transform(adamw, labels))
    ours = make_optimizer(CONFIG)
    params, others, state, other = PARAMS, PARAMS, ours.init(PARAMS), theirs.init(PARAMS)
    update = jax.jit(ours.update)
    for step in range(5):
        updates, state = update(gradients(step), state, params, finite=FINITE)
        params = optax.apply_updates(params, updates)
        updates, other = theirs.update(gradients(step), other, others)
        others = optax.apply_updates(others, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), params, others)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), state, other)


@pytest.mark.parametrize("ema", [False, True])
def test_a_step_copies_no_moments(ema):
    """What XLA makes of it on a CPU has no copy of an array as large as a parameter; with `optax.adamw` it has two."""

    def loss(trainable, frozen, batch, key):
        value = jnp.square(trainable["unet"]["kernel"] - batch).sum()
        return value, {"loss": value}

    optimizer, kernel = make_optimizer(CONFIG), jnp.ones((3, 3, 64, 32))
    state = init_state({"unet": {"kernel": kernel}}, optimizer, ema)
    compiled = make_step(loss, optimizer, 0.9).lower(state, {}, kernel, jax.random.key(0)).compile()
    assert compiled.memory_analysis().alias_size_in_bytes >= (3 + ema) * kernel.nbytes
    assert not re.findall(r"f32\[3,3,64,32\]\S* copy\(", compiled.as_text())
