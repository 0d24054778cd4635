"""The schedule and every sampler against diffusers' schedulers, step for step, from SD v1.5's config and from ours."""

import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_euler_ancestral_discrete

from mgie_jax.diffusion import sample, schedule
from mgie_jax.diffusion.schedule import ScheduleConfig, make_schedule
from mgie_jax.models import presets
from mgie_jax.weights.model_config import diffusion_files
from tests.parity.carry import relative_error

SHAPE = (2, 4, 4, 4)  # height, width and channels alike: no layout to mind
STEPS = (4, 7, 15, 50)
PREDICTIONS = ("epsilon", "v_prediction")

SD15 = diffusers.PNDMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    set_alpha_to_one=False,
    skip_prk_steps=True,
    steps_offset=1,
).config


def denoise(x, t, xp):
    """Nontrivial in both arguments, and of the size of a real prediction."""
    return xp.tanh(0.7 * x + 0.3) - 0.2 * xp.cos(0.01 * t + 2.0 * x)


def noises(steps):
    return np.random.default_rng(0).standard_normal((steps + 1, *SHAPE)).astype(np.float32)


def their_trace(scheduler, steps, noise, monkeypatch):
    """Latents after each step."""
    queue = iter(noise[1:])
    monkeypatch.setattr(scheduling_euler_ancestral_discrete, "randn_tensor", lambda *a, **k: torch.tensor(next(queue)))
    scheduler.set_timesteps(steps)
    x = torch.tensor(noise[0]) * scheduler.init_noise_sigma
    trace = []
    for t in scheduler.timesteps:
        output = denoise(scheduler.scale_model_input(x, t), t.float(), torch)
        x = scheduler.step(output, t, x).prev_sample
        trace.append(x.numpy())
    return trace


def our_trace(sampler, noise):
    state = sample.init(sampler, jnp.asarray(noise[0]))

    @jax.jit
    def one(state, rows):
        noise_fn = (lambda i: jnp.asarray(noise)[i + 1]) if sampler.stochastic else None
        return sample.run(lambda x, t: denoise(x, t, jnp), rows, state, noise_fn)

    trace = []
    for i in range(len(sampler.table.index)):
        state = one(state, sampler.table.rows(i, i + 1))
        trace.append(state.x)
    return trace


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("euler_ancestral", diffusers.EulerAncestralDiscreteScheduler),
        ("ddim", diffusers.DDIMScheduler),
        ("dpmpp_2m", diffusers.DPMSolverMultistepScheduler),
    ],
)
def test_sampler_equals_diffusers_step_for_step(name, reference, steps, prediction_type, monkeypatch):
    extra = {"clip_sample": False} if name == "ddim" else {}
    scheduler = reference.from_config(SD15, prediction_type=prediction_type, **extra)
    sampler = sample.SAMPLERS[name](ScheduleConfig(prediction_type=prediction_type), steps)
    noise = noises(steps)
    theirs, ours = their_trace(scheduler, steps, noise, monkeypatch), our_trace(sampler, noise)

    assert np.allclose(sampler.table.timestep, scheduler.timesteps.numpy(), atol=1e-3)
    assert sampler.init_noise_sigma == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-6)
    assert len(ours) == len(theirs) == steps
    assert max(relative_error(a, b) for a, b in zip(ours, theirs, strict=True)) < 2e-5


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("steps", STEPS[1:])
@pytest.mark.parametrize("name", sample.SAMPLERS)
def test_a_steep_schedule_read_from_our_file(name, steps, prediction_type, tmp_path, monkeypatch):
    """The scheduler_config.json of a model directory makes diffusers sample as we do; here to 0.25 % of signal."""
    config = ScheduleConfig(beta_end=0.03, prediction_type=prediction_type)
    assert float(make_schedule(config).alphas_cumprod[-1]) < 1e-5
    sizes = presets.test()
    fields = diffusion_files(sizes.unet, sizes.vae, config, name)["scheduler/scheduler_config.json"]
    (tmp_path / "scheduler_config.json").write_text(json.dumps(fields))
    scheduler = getattr(diffusers, fields["_class_name"]).from_pretrained(tmp_path)
    noise = noises(steps)
    theirs = their_trace(scheduler, steps, noise, monkeypatch)
    ours = our_trace(sample.SAMPLERS[name](config, steps), noise)
    assert max(relative_error(a, b) for a, b in zip(ours, theirs, strict=True)) < 2e-5


def test_schedule_equals_diffusers():
    theirs, ours = diffusers.DDPMScheduler.from_config(SD15), make_schedule(ScheduleConfig())
    assert relative_error(ours.betas, theirs.betas) < 1e-6
    assert relative_error(ours.alphas_cumprod, theirs.alphas_cumprod) < 1e-6
    sigmas = diffusers.EulerAncestralDiscreteScheduler.from_config(SD15).sigmas.numpy()[-2::-1]
    assert relative_error(ours.sigmas, sigmas) < 1e-6


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_noising_and_targets_equal_diffusers(prediction_type):
    theirs = diffusers.DDPMScheduler.from_config(SD15, prediction_type=prediction_type)
    ours = make_schedule(ScheduleConfig(prediction_type=prediction_type))
    x0, noise = noises(1)
    t = np.array([3, 960])
    noisy = schedule.add_noise(ours, jnp.asarray(x0), jnp.asarray(noise), jnp.asarray(t))
    x0_, noise_, t_ = torch.tensor(x0), torch.tensor(noise), torch.tensor(t)
    assert relative_error(noisy, theirs.add_noise(x0_, noise_, t_)) < 1e-5
    target = schedule.training_target(ours, jnp.asarray(x0), jnp.asarray(noise), jnp.asarray(t))
    wanted = noise if prediction_type == "epsilon" else theirs.get_velocity(x0_, noise_, t_)
    assert relative_error(target, wanted) < 1e-5
