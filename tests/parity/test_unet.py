"""The UNet against diffusers' UNet2DConditionModel."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mgie_jax.models.unet import UNet2DConditionModel, UNetConfig
from tests.parity.carry import carry, relative_error

CONFIG = UNetConfig(
    block_out_channels=(16, 32, 48),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=4,
    cross_attention_dim=24,
    norm_num_groups=8,
    sample_size=16,
)


def make_pair(config):
    torch.manual_seed(0)
    theirs = diffusers.UNet2DConditionModel(**dataclasses.asdict(config)).eval()
    with torch.no_grad():
        for value in theirs.parameters():  # unit norms and zero biases would hide mistakes
            value.add_(0.05 * torch.randn_like(value))
    ours = UNet2DConditionModel(config)
    template = jax.eval_shape(ours.init, jax.random.key(0), *inputs(config, 8, 8))["params"]
    return theirs, ours, {"params": carry(template, theirs.state_dict())}


def inputs(config, height, width):
    rng = np.random.default_rng(0)
    return (
        jnp.asarray(rng.standard_normal((2, height, width, config.in_channels)), jnp.float32),
        jnp.asarray([17.0, 871.25]),
        jnp.asarray(rng.standard_normal((2, 5, config.cross_attention_dim)), jnp.float32),
    )


def reference(theirs, sample, timesteps, context):
    with torch.no_grad():
        output = theirs(
            torch.tensor(np.array(sample.transpose(0, 3, 1, 2))),
            torch.tensor(np.array(timesteps)),
            torch.tensor(np.array(context)),
        ).sample
    return output.permute(0, 2, 3, 1)


@pytest.fixture(scope="module")
def pair():
    return make_pair(CONFIG)


@pytest.mark.parametrize("size", [(8, 12), (7, 10)], ids=["wide", "halves unevenly"])
def test_forward(pair, size):
    theirs, ours, params = pair
    args = inputs(CONFIG, *size)
    assert relative_error(jax.jit(ours.apply)(params, *args), reference(theirs, *args)) < 1e-4


def test_forward_of_the_stable_diffusion_layout():
    """Four levels, two layers in each, attention in all but the coarsest."""
    config = UNetConfig(
        block_out_channels=(8, 16, 24, 24), attention_head_dim=2, cross_attention_dim=12, norm_num_groups=4
    )
    theirs, ours, params = make_pair(config)
    args = inputs(config, 16, 8)
    assert relative_error(jax.jit(ours.apply)(params, *args), reference(theirs, *args)) < 1e-4
