"""What the samplers, the noise and the guidance promise beside equality with diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgie_jax.diffusion import sample, schedule
from mgie_jax.diffusion.schedule import ScheduleConfig, make_schedule

SHAPE = (3, 4, 5, 4)
CONFIG = ScheduleConfig()


def denoise(x, t):
    return jnp.tanh(0.7 * x + 0.3) - 0.2 * jnp.cos(0.01 * t)


def keys(*seeds):
    return jax.vmap(jax.random.key)(jnp.asarray(seeds))


def edit(name, keys, shape, cuts=(0, 10)):
    sampler = sample.SAMPLERS[name](CONFIG, cuts[-1])
    noise, noise_fn = sample.noise_from_keys(keys, shape)
    state = sample.init(sampler, noise)
    for start, stop in zip(cuts, cuts[1:], strict=False):
        rows = sampler.table.rows(start, stop)
        state = sample.run(denoise, rows, state, noise_fn if sampler.stochastic else None)
    return state


@pytest.mark.parametrize("name", sample.SAMPLERS)
def test_chunks_give_what_one_run_gives(name):
    whole = edit(name, keys(1, 2, 3), SHAPE)
    chunks = edit(name, keys(1, 2, 3), SHAPE, cuts=(0, 4, 10))
    np.testing.assert_allclose(whole.x, chunks.x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole.x0, chunks.x0, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sample.SAMPLERS)
def test_a_row_is_the_same_alone_or_in_a_batch(name):
    batch = edit(name, keys(1, 2, 3), SHAPE)
    alone = edit(name, keys(2), (1, *SHAPE[1:]))
    np.testing.assert_allclose(batch.x[1:2], alone.x, rtol=1e-5, atol=1e-6)


def test_noise_is_standard_normal_and_differs_by_key_and_step():
    first, noise_fn = sample.noise_from_keys(keys(1, 2), (2, 64, 64, 4))
    draws = jnp.stack([first, noise_fn(jnp.int32(0)), noise_fn(jnp.int32(1))]).reshape(6, -1)
    np.testing.assert_allclose(jnp.corrcoef(draws), np.eye(6), atol=0.04)
    np.testing.assert_allclose(draws.std(axis=1), 1.0, atol=0.03)
    np.testing.assert_array_equal(first[1:], sample.noise_like(keys(2), 0, (1, 64, 64, 4)))


def test_the_noise_and_v_are_told_apart_by_what_they_determine():
    """The noise is itself; v and x_t together give the clean latents and the noise (arXiv 2202.00512, appendix D)."""
    x0, noise = jax.random.normal(jax.random.key(0), (2, *SHAPE))
    t = jnp.array([0, 500, 999])
    plain = make_schedule(ScheduleConfig(prediction_type="epsilon"))
    np.testing.assert_array_equal(schedule.training_target(plain, x0, noise, t), noise)
    s = make_schedule(ScheduleConfig(prediction_type="v_prediction"))
    x_t, v = schedule.add_noise(s, x0, noise, t), schedule.training_target(s, x0, noise, t)
    signal, sigma = schedule.signal_and_noise(s, t)
    np.testing.assert_allclose(signal * x_t - sigma * v, x0, atol=1e-5)
    np.testing.assert_allclose(signal * v + sigma * x_t, noise, atol=1e-5)


@pytest.mark.parametrize("steps", [0, 1001])
@pytest.mark.parametrize("name", sample.SAMPLERS)
def test_impossible_step_counts_are_refused(name, steps):
    with pytest.raises(ValueError, match=f"got {steps}"):
        sample.SAMPLERS[name](CONFIG, steps)


def test_ddim_refuses_to_start_past_the_end():
    with pytest.raises(ValueError, match="start at t = 1000"):
        sample.ddim(CONFIG, 1000)


def test_other_schedules_are_refused():
    with pytest.raises(ValueError, match="rectified"):
        ScheduleConfig(beta_schedule="rectified")
    with pytest.raises(ValueError, match="'sample'"):
        ScheduleConfig(prediction_type="sample")
