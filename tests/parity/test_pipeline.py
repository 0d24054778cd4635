"""A whole edit against diffusers' StableDiffusionInstructPix2PixPipeline, both from one model directory."""

import dataclasses
import importlib

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from mgie_jax import edit
from mgie_jax.diffusion.sample import noise_from_keys
from mgie_jax.diffusion.schedule import ScheduleConfig
from mgie_jax.loading import load
from mgie_jax.models import presets
from mgie_jax.photo import to_pixels
from mgie_jax.weights.files import load_config, save_model_dir
from tests.parity.carry import tensor

STEPS, SEED = 5, 3
# Class, and the spacing of its timesteps where another class wrote the folder's scheduler_config.json.
SCHEDULERS = {
    "euler_ancestral": (diffusers.EulerAncestralDiscreteScheduler, "linspace"),
    "ddim": (diffusers.DDIMScheduler, "leading"),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, "linspace"),
}
# Each case has a model directory of its own: Stable Diffusion v1.5's schedule, and one that ends in almost pure noise
# (0.25 % of signal). The photos' sizes are width and height.
CASES = {
    "square": (ScheduleConfig(), (40, 40)),
    "wide, steep, v": (ScheduleConfig(beta_end=0.03, prediction_type="v_prediction"), (90, 50)),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def model_dir(case, tmp_path_factory, tiny_params, tiny_tokenizer_dir):
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_model_dir(path, dataclasses.replace(presets.test(), schedule=case[0]), tiny_params, tiny_tokenizer_dir)
    return path


@pytest.fixture(scope="module")
def networks(model_dir):
    return (
        diffusers.UNet2DConditionModel.from_pretrained(model_dir, subfolder="unet"),
        diffusers.AutoencoderKL.from_pretrained(model_dir, subfolder="vae"),
    )


@pytest.fixture(scope="module")
def editor(model_dir):
    return load(model_dir)


def pipeline(model_dir, networks, sampler):
    cls, spacing = SCHEDULERS[sampler]
    scheduler = cls.from_pretrained(model_dir, subfolder="scheduler", timestep_spacing=spacing)
    unet, vae = networks
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_schedule_survives_a_model_directory(case, model_dir):
    assert load_config(model_dir).schedule == case[0]


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_same_picture(case, model_dir, networks, editor, sampler, monkeypatch):
    """The same photo, guidance, first latents and noise of each step."""
    size = case[1]
    rng = np.random.default_rng(1)
    photo = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8))
    ours = editor.edit(photo, "brighter", seed=SEED, sampler=sampler, steps=STEPS)
    assert (ours.image.width > ours.image.height) == (size[0] > size[1])

    pixels = jnp.asarray(to_pixels(ours.before))[None]
    conditions = edit.guide(editor.model, editor.params, jnp.asarray(ours.states)[None], pixels)
    first, noise_fn = noise_from_keys(jax.random.key(SEED)[None], conditions.image_latents.shape)
    pipe = pipeline(model_dir, networks, sampler)
    draws = iter(range(STEPS))
    module = importlib.import_module(type(pipe.scheduler).__module__)
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: tensor(noise_fn(next(draws))))
    theirs = pipe(
        image=ours.before,
        prompt_embeds=torch.tensor(np.array(conditions.guidance)),
        negative_prompt_embeds=torch.tensor(np.array(conditions.null_guidance)),
        latents=tensor(first),
        num_inference_steps=STEPS,
        guidance_scale=editor.config.sampling.guidance_scale,
        image_guidance_scale=editor.config.sampling.image_guidance_scale,
    ).images[0]

    a, b = np.asarray(ours.image, np.int16), np.asarray(theirs, np.int16)
    assert a.shape == b.shape
    # Neither the photo come back nor a picture of clipped values, which would agree whatever was computed.
    assert np.mean((b > 0) & (b < 255)) > 0.5 and b.std() > 5
    assert np.mean(np.abs(a - b) <= 1) >= 0.999
