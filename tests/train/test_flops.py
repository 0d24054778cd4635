"""FLOPs counted from the config are those of the program: its matrix products and convolutions, one by one."""

import dataclasses
from functools import cache

import jax
import numpy as np
import pytest

from mgie_jax.models import presets
from mgie_jax.models.mgie import MGIE
from mgie_jax.plan.count import flops as program_flops
from mgie_jax.train.flops import PEAKS, device_peak, step_flops
from mgie_jax.train.loss import EditPairBatch, TextBatch, make_instruction_loss, make_joint_loss
from mgie_jax.train.state import split_params

PAPER = ("mllm/model/embed_tokens/", "mllm/lm_head/", "edit_head/", "unet/")
TOKENS, ROWS, IMG0 = 24, 2, 312


def joint_batch(config, size):
    side = config.mllm.vision.image_size
    row = [config.mllm.im_patch_id] * config.mllm.vision.num_patches + [1] * 8 + list(range(IMG0, IMG0 + 8)) + [2]
    ids = np.array([row + [0] * (TOKENS - len(row))] * ROWS, np.int32)
    text = TextBatch(ids=ids, mask=ids > 0, labels=ids, clip_pixels=np.zeros((ROWS, side, side, 3), np.float32))
    photos = np.zeros((ROWS, size, size, 3), np.float32)
    return EditPairBatch(text=text, source=photos, target=photos)


@cache
def shapes(config):
    return MGIE(config).shapes()


def counted(config, trainable, size, noise_draws=1):
    """(forward, forward and backward) of the step's loss, of the whole batch, from its programs."""
    model, batch, params = MGIE(config), joint_batch(config, size or 16), shapes(config)
    if size is None:
        loss, batch, params = make_instruction_loss(model), batch.text, {"mllm": params["mllm"]}
    else:
        loss = make_joint_loss(model, IMG0, noise_draws=noise_draws)
    trained, frozen = split_params(params, trainable)
    arguments = (trained, frozen, batch, jax.random.key(0))
    forward = jax.make_jaxpr(loss)(*arguments)
    both = jax.make_jaxpr(jax.value_and_grad(loss, has_aux=True))(*arguments)
    return program_flops(forward.jaxpr), program_flops(both.jaxpr)


def another():
    """Other sizes than `presets.test()`: a two-layer projector, odd latents, three levels, grouped queries."""
    config = presets.test()
    unet = dataclasses.replace(
        config.unet, block_out_channels=(32, 64, 64), layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return dataclasses.replace(
        config,
        mllm=dataclasses.replace(config.mllm, mm_projector_type="mlp2x_gelu"),
        edit_head=dataclasses.replace(config.edit_head, num_layers=2),
        unet=unet,
    )


@pytest.mark.parametrize(
    "config, size, draws, trainable",
    [
        pytest.param(presets.test(), 16, 1, PAPER, id="paper"),
        pytest.param(presets.test(), 16, 1, ("edit_head/",), id="edit head"),
        pytest.param(another(), 14, 3, ("mllm/", "edit_head/", "unet/"), id="another, all but the VAE",
                     marks=pytest.mark.slow),
        pytest.param(another(), 14, 1, ("vae/",), id="another, the VAE", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_joint_step(config, size, draws, trainable):
    forward, both = counted(config, trainable, size, draws)
    flops = step_flops(config, trainable, tokens=TOKENS, image_size=size, batch_size=ROWS, noise_draws=draws)
    assert flops.forward * ROWS == pytest.approx(forward, rel=0.02)
    assert flops.training * ROWS == pytest.approx(both, rel=0.05)


@pytest.mark.parametrize("trainable", [("mllm/",), ("mllm/lm_head/",), ("mllm/model/mm_projector/",)])
def test_instruction_step(trainable):
    forward, both = counted(presets.test(), trainable, None)
    flops = step_flops(presets.test(), trainable, tokens=TOKENS, batch_size=ROWS)
    assert flops.forward * ROWS == pytest.approx(forward, rel=0.02)
    assert flops.training * ROWS == pytest.approx(both, rel=0.05)


def test_full_size():
    """Parameters times tokens is most of the MLLM: CLIP's 23 layers once, LLaMA's, frozen behind a trained embedding,
    twice, and the trained vocabulary three times."""
    flops = step_flops(presets.mgie_7b(), PAPER, tokens=312)
    clip = 257 * 23 * 12 * 1024**2
    llama, head = 312 * 32 * (4 * 4096**2 + 3 * 4096 * 11008), 312 * 32011 * 4096
    assert flops.forward == pytest.approx(2 * (clip + llama + head), rel=0.02)
    assert flops.training == pytest.approx(2 * (clip + 2 * llama + 3 * head), rel=0.02)


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("TPU v5p", 459e12), ("TPU v6 lite", 918e12), ("TPU v4", 275e12),
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12), ("cpu", None), ("Quadro", None),
    ],
)  # fmt: skip
def test_device_peaks(kind, peak):
    assert device_peak(kind) == peak


def test_this_device():
    kind = jax.devices()[0].device_kind
    assert (device_peak() is None) == (not any(kind.startswith(known) for known in PEAKS))
