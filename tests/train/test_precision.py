"""bfloat16 for the networks' arithmetic, float32 for what is summed, normalised, exponentiated or kept."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from mgie_jax.models import presets
from mgie_jax.models.mgie import MGIE
from mgie_jax.train.loss import make_instruction_loss, make_joint_loss
from mgie_jax.train.optimizer import hold
from mgie_jax.train.state import init_state, split_params
from mgie_jax.train.step import make_step
from tests.train.meshes import make_batch

CONFIG = presets.test()
TRAINED = ("mllm/model/embed_tokens/", "mllm/lm_head/", "edit_head/", "unet/")


@pytest.fixture(scope="module")
def trees(tiny_params):
    """Trainable in float32, frozen in bfloat16."""
    params = {name: tree for name, tree in tiny_params.items() if name != "emb"}
    trained, frozen = split_params(jax.tree.map(jnp.asarray, params), TRAINED)
    return trained, jax.tree.map(lambda x: x.astype(jnp.bfloat16), frozen)


@pytest.fixture(scope="module")
def batch():
    return jax.tree.map(jnp.asarray, make_batch(CONFIG, 0))


def equations(jaxpr) -> Iterator:
    """Of a program and of every program in it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_sums_norms_and_softmax_of_the_joint_loss_are_float32(trees, batch):
    loss = make_joint_loss(MGIE(CONFIG, jnp.bfloat16), CONFIG.mllm.llm.vocab_size - 8)
    jaxpr = jax.make_jaxpr(loss)(*trees, batch, jax.random.key(0)).jaxpr
    found = list(equations(jaxpr))
    for equation in found:
        if equation.primitive.name in ("exp", "log", "rsqrt", "sqrt", "reduce_sum", "cumsum", "cos", "sin"):
            assert all(x.aval.dtype != jnp.bfloat16 for x in equation.invars), equation
    products = [e for e in found if e.primitive.name in ("conv_general_dilated", "dot_general")]
    low = [all(x.aval.dtype == jnp.bfloat16 for x in e.invars) for e in products]
    assert sum(low) == len(low) > 20  # none takes the slow way
    assert all(x.aval.dtype == jnp.float32 for x in jaxpr.outvars)


def test_a_step_in_bfloat16_keeps_the_state_in_float32_and_descends_alike(trees, batch):
    trained, frozen = ({"mllm": tree["mllm"]} for tree in trees)
    optimizer = hold(optax.sgd(1.0))

    def after(dtype):
        state = init_state(jax.tree.map(jnp.array, trained), optimizer, ema=True)
        step = make_step(make_instruction_loss(MGIE(CONFIG, dtype)), optimizer, 0.9)
        state, metrics = step(state, frozen, batch.text, jax.random.key(0))
        gradient = jax.tree.map(jnp.subtract, state.params, trained)
        assert {x.dtype for x in jax.tree.leaves((state.params, state.ema))} == {np.dtype(np.float32)}
        return float(metrics["loss"]), np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient)])

    (low, rough), (high, exact) = after(jnp.bfloat16), after(jnp.float32)
    assert low == pytest.approx(high, rel=1e-2) and low != high
    assert np.linalg.norm(rough - exact) < 0.05 * np.linalg.norm(exact)
