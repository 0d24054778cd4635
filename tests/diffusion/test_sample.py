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


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", sample.SAMPLERS)
def test_a_perfect_denoiser_finds_the_clean_latents(name, prediction_type):
    """Where the data is one point, the exact prediction is known in closed form and sampling ends at it."""
    config = ScheduleConfig(prediction_type=prediction_type)
    clean = jax.random.normal(jax.random.key(5), SHAPE)
    abar = jnp.asarray(schedule.alphas_cumprod(config), jnp.float32)

    def exact(x, t):
        share = jnp.interp(t, jnp.arange(len(abar)), abar)
        signal, noise = jnp.sqrt(share), jnp.sqrt(1 - share)
        epsilon = (x - signal * clean) / noise
        return epsilon if prediction_type == "epsilon" else signal * epsilon - noise * clean

    sampler = sample.SAMPLERS[name](config, 12)
    noise, noise_fn = sample.noise_from_keys(keys(1, 2, 3), SHAPE)
    state = sample.init(sampler, noise)
    end = sample.run(exact, sampler.table, state, noise_fn if sampler.stochastic else None)
    np.testing.assert_allclose(end.x0, clean, atol=2e-3)
    # DDIM as Stable Diffusion configures it stops at alphas_cumprod[0], a little noise short of clean.
    np.testing.assert_allclose(end.x, clean, atol=0.15 if name == "ddim" else 2e-3)


def test_guidance_weighs_three_branches():
    """Text, then image, then nothing: each branch must see its own guidance and photo."""
    rng = np.random.default_rng(0)
    x, photo = (jnp.asarray(rng.standard_normal((2, 3, 3, 4)), jnp.float32) for _ in range(2))
    guidance = jnp.asarray(rng.standard_normal((2, 5, 6)), jnp.float32)
    null = jnp.asarray(rng.standard_normal((1, 5, 6)), jnp.float32)

    def unet(sample, timesteps, context):
        assert sample.shape == (6, 3, 3, 8) and timesteps.shape == (6,) and context.shape == (6, 5, 6)
        latents, image = jnp.split(sample, 2, axis=-1)
        return jnp.tanh(latents + 2 * image) * context.mean((1, 2))[:, None, None, None] + timesteps[0]

    def one(context, image):
        context = jnp.broadcast_to(context, guidance.shape)
        return jnp.tanh(x + 2 * image) * context.mean((1, 2))[:, None, None, None] + 7.0

    def wanted(s_t, s_i):
        text, image, uncond = one(guidance, photo), one(null, photo), one(null, 0 * photo)
        return uncond + s_t * (text - image) + s_i * (image - uncond)

    def ours(s_t, s_i):
        return sample.guided(unet, guidance, null, photo, s_t, s_i)(x, jnp.float32(7.0))

    np.testing.assert_allclose(ours(7.5, 1.5), wanted(7.5, 1.5), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours(1.0, 1.0), one(guidance, photo), rtol=1e-5, atol=1e-5)
    per_row = ours(jnp.array([7.5, 2.0]), 1.5)
    np.testing.assert_allclose(per_row[0], wanted(7.5, 1.5)[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(per_row[1], wanted(2.0, 1.5)[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_targets_convert_back_to_noise_and_clean_latents(prediction_type):
    s = make_schedule(ScheduleConfig(prediction_type=prediction_type))
    x0, noise = jax.random.normal(jax.random.key(0), (2, *SHAPE))
    t = jnp.array([0, 500, 999])
    x_t, target = schedule.add_noise(s, x0, noise, t), schedule.training_target(s, x0, noise, t)
    np.testing.assert_allclose(schedule.to_epsilon(s, target, x_t, t), noise, atol=1e-4)
    np.testing.assert_allclose(schedule.to_x0(s, target, x_t, t), x0, atol=1e-4)


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
