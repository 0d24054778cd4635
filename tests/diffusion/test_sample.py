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


@pytest.mark.parametrize(
    "text, image, shown",
    [
        (7.5, 1.5, (0, 1, 2)),
        (1.1, 1.0, (0, 1)),
        (2.0, 2.0, (0, 2)),
        (1.0, 1.0, (0,)),
        (0.0, 1.0, (1,)),
        (0.0, 0.0, (2,)),
    ],
)
def test_branches_without_weight_are_left_out_and_nothing_changes(text, image, shown):
    """InstructPix2Pix's eq. 3, over three branches in float64, is what the branches shown give."""
    rng = np.random.default_rng(0)
    guidance, photo, x = (rng.normal(size=(2, *shape)) for shape in ((5, 6), (4, 3, 8), (4, 3, 8)))
    null = rng.normal(size=(1, 5, 6))
    table = rng.normal(size=(6, 8))

    def said(context, photo, x):
        return np.tanh(x + 2 * photo) + (context.mean(-2) @ table)[..., None, None, :]

    branch = [said(guidance, photo, x), said(null, photo, x), said(null, 0 * photo, x)]
    wanted = branch[2] + text * (branch[0] - branch[1]) + image * (branch[1] - branch[2])

    scales = sample.scales(2, text, image)
    contexts, photos = sample.branches(*(jnp.asarray(a, jnp.float32) for a in (guidance, null, photo)), scales.shown)
    assert scales.shown == shown and contexts.shape[1] == photos.shape[1] == len(shown)

    def unet(x, step):
        made = said(np.asarray(contexts, np.float64), np.asarray(photos, np.float64), np.asarray(x)[:, None])
        return jnp.asarray(made.reshape(-1, *made.shape[2:]), jnp.float32)

    made = sample.guided(unet, scales)(jnp.asarray(x, jnp.float32), None)
    np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-5)
