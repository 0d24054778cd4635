"""The UNet against diffusers' UNet2DConditionModel."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mgie_jax.models.unet import UNet2DConditionModel, UNetConfig
from tests.parity.carry import array, carry, gradient_error, relative_error, relative_l2, stir, tensor

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
    stir(theirs)
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
        return array(theirs(tensor(sample), tensor(timesteps), tensor(context)).sample)


@pytest.fixture(scope="module")
def pair():
    return make_pair(CONFIG)


def test_forward_where_sides_halve_unevenly(pair):
    theirs, ours, params = pair
    args = inputs(CONFIG, 7, 10)
    assert relative_error(jax.jit(ours.apply)(params, *args), reference(theirs, *args)) < 1e-4


def test_forward_of_the_stable_diffusion_layout():
    """Four levels, two layers in each, attention in all but the coarsest."""
    config = UNetConfig(
        block_out_channels=(8, 16, 24, 24), attention_head_dim=2, cross_attention_dim=12, norm_num_groups=4
    )
    theirs, ours, params = make_pair(config)
    args = inputs(config, 16, 8)
    assert relative_error(jax.jit(ours.apply)(params, *args), reference(theirs, *args)) < 1e-4


def test_forward_and_gradients(pair):
    """For every parameter, the latents and the guidance, through which training reaches the edit head."""
    theirs, ours, params = pair
    sample, timesteps, context = inputs(CONFIG, 8, 12)

    def loss(params, sample, context):
        output = ours.apply(params, sample, timesteps, context)
        return jnp.square(output).sum(), output

    theirs.zero_grad()
    x, states = tensor(sample, grad=True), tensor(context, grad=True)
    wanted = theirs(x, tensor(timesteps), states).sample
    wanted.square().sum().backward()
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    (grads, sample_grad, context_grad), output = gradients(params, sample, context)
    assert relative_error(output, array(wanted)) < 1e-4
    assert gradient_error(grads["params"], theirs) < 1e-4
    assert relative_error(sample_grad, array(x.grad)) < 1e-4
    assert relative_error(context_grad, array(states.grad)) < 1e-4


def test_bfloat16_stays_near_the_float32_reference(pair):
    theirs, _, params = pair
    args = inputs(CONFIG, 8, 12)
    low = jax.jit(UNet2DConditionModel(CONFIG, jnp.bfloat16).apply)(params, *args)
    assert low.dtype == jnp.bfloat16
    assert relative_l2(low, reference(theirs, *args)) < 2e-2
