"""The autoencoder against diffusers' `AutoencoderKL`, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL as TorchVAE

from mgie_jax.models.vae import AutoencoderKL, VAEConfig
from tests.parity.carry import carry, relative_error

CONFIG = VAEConfig(latent_channels=3, block_out_channels=(8, 16, 24), layers_per_block=2, norm_num_groups=4)


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    levels = len(CONFIG.block_out_channels)
    theirs = TorchVAE(
        block_out_channels=CONFIG.block_out_channels,
        layers_per_block=CONFIG.layers_per_block,
        latent_channels=CONFIG.latent_channels,
        norm_num_groups=CONFIG.norm_num_groups,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    ).eval()
    for parameter in theirs.parameters():  # norms away from 1 and 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    ours = AutoencoderKL(CONFIG)
    template = jax.eval_shape(ours.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jax.random.key(0))["params"]
    return ours, carry(template, theirs.state_dict()), theirs


def nchw(x):
    return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)


def nhwc(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


def test_encode(pair):
    ours, params, theirs = pair
    pixels = jax.random.uniform(jax.random.key(1), (2, 24, 16, 3), minval=-1, maxval=1)
    posterior = ours.apply({"params": params}, pixels, method="encode")
    with torch.no_grad():
        expected = theirs.encode(nchw(pixels)).latent_dist
    assert relative_error(posterior.mode(), nhwc(expected.mode())) <= 1e-4
    assert relative_error(posterior.logvar, nhwc(expected.logvar)) <= 1e-4
    noise = jax.random.normal(jax.random.key(2), posterior.mean.shape)
    sample = nhwc(expected.mean + expected.std * nchw(noise))
    assert relative_error(posterior.sample(noise), sample) <= 1e-4
    assert relative_error(posterior.kl(), expected.kl().numpy()) <= 1e-4


def test_decode(pair):
    ours, params, theirs = pair
    latents = jax.random.normal(jax.random.key(3), (2, 6, 4, CONFIG.latent_channels))
    with torch.no_grad():
        expected = nhwc(theirs.decode(nchw(latents)).sample)
    assert relative_error(ours.apply({"params": params}, latents, method="decode"), expected) <= 1e-4


def test_gradients(pair):
    ours, params, theirs = pair
    pixels = jax.random.uniform(jax.random.key(1), (1, 16, 16, 3), minval=-1, maxval=1)

    def loss(params):
        latents = ours.apply({"params": params}, pixels, method="encode").mode()
        return jnp.square(ours.apply({"params": params}, latents, method="decode") - pixels).mean()

    grads = jax.grad(loss)(params)
    theirs.zero_grad()
    x = nchw(pixels)
    torch.square(theirs.decode(theirs.encode(x).latent_dist.mode()).sample - x).mean().backward()
    expected = carry(params, {name: p.grad for name, p in theirs.named_parameters()})
    worst = max(jnp.abs(g).max() for g in jax.tree.leaves(expected))
    for ours_leaf, theirs_leaf in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        assert jnp.abs(ours_leaf - theirs_leaf).max() <= 1e-4 * worst


def test_sides_that_do_not_divide_are_refused(pair):
    ours, params, _ = pair
    with pytest.raises(ValueError, match=r"\(10, 8\) must divide by 4"):
        ours.apply({"params": params}, jnp.zeros((1, 10, 8, 3)), method="encode")
