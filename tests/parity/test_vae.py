"""The autoencoder against diffusers' `AutoencoderKL`, in float32."""

import jax
import jax.numpy as jnp
import pytest
import torch
from diffusers import AutoencoderKL as TorchVAE

from mgie_jax.models.vae import AutoencoderKL, VAEConfig
from tests.parity.carry import array, carry, gradient_error, relative_error, relative_l2, stir, tensor

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
    stir(theirs, 0.1)
    ours = AutoencoderKL(CONFIG)
    template = jax.eval_shape(ours.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jax.random.key(0))["params"]
    return ours, carry(template, theirs.state_dict()), theirs


def test_encode(pair):
    ours, params, theirs = pair
    pixels = jax.random.uniform(jax.random.key(1), (2, 24, 16, 3), minval=-1, maxval=1)
    posterior = jax.jit(lambda x: ours.apply({"params": params}, x, method="encode"))(pixels)
    with torch.no_grad():
        expected = theirs.encode(tensor(pixels)).latent_dist
    assert relative_error(posterior.mode(), array(expected.mode())) <= 1e-4
    assert relative_error(posterior.logvar, array(expected.logvar)) <= 1e-4
    noise = jax.random.normal(jax.random.key(2), posterior.mean.shape)
    sample = array(expected.mean + expected.std * tensor(noise))
    assert relative_error(posterior.sample(noise), sample) <= 1e-4
    assert relative_error(posterior.kl(), array(expected.kl())) <= 1e-4


def test_decode(pair):
    ours, params, theirs = pair
    latents = jax.random.normal(jax.random.key(3), (2, 6, 4, CONFIG.latent_channels))
    with torch.no_grad():
        expected = array(theirs.decode(tensor(latents)).sample)
    decoded = jax.jit(lambda x: ours.apply({"params": params}, x, method="decode"))(latents)
    assert relative_error(decoded, expected) <= 1e-4


def test_gradients(pair):
    """Of the reconstruction from a sample, for every parameter of both halves and the photo."""
    ours, params, theirs = pair
    pixels = jax.random.uniform(jax.random.key(1), (1, 16, 16, 3), minval=-1, maxval=1)
    noise = jax.random.normal(jax.random.key(2), (1, 4, 4, CONFIG.latent_channels))

    def loss(params, pixels):
        posterior = ours.apply({"params": params}, pixels, method="encode")
        rebuilt = ours.apply({"params": params}, posterior.sample(noise), method="decode")
        return jnp.square(rebuilt - 0.5).sum() + posterior.kl().sum()

    grads, pixels_grad = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, pixels)
    theirs.zero_grad()
    x = tensor(pixels, grad=True)
    posterior = theirs.encode(x).latent_dist
    rebuilt = theirs.decode(posterior.mean + posterior.std * tensor(noise)).sample
    (torch.square(rebuilt - 0.5).sum() + posterior.kl().sum()).backward()
    assert gradient_error(grads, theirs) < 1e-4
    assert relative_error(pixels_grad, array(x.grad)) < 1e-4


def test_bfloat16_stays_near_the_float32_reference(pair):
    _, params, theirs = pair
    low = AutoencoderKL(CONFIG, jnp.bfloat16)
    pixels = jax.random.uniform(jax.random.key(1), (2, 24, 16, 3), minval=-1, maxval=1)
    latents = jax.random.normal(jax.random.key(3), (2, 6, 4, CONFIG.latent_channels))
    encoded = jax.jit(lambda x: low.apply({"params": params}, x, method="encode").mode())(pixels)
    decoded = jax.jit(lambda x: low.apply({"params": params}, x, method="decode"))(latents)
    with torch.no_grad():
        assert relative_l2(encoded, array(theirs.encode(tensor(pixels)).latent_dist.mode())) < 2e-2
        assert relative_l2(decoded, array(theirs.decode(tensor(latents)).sample)) < 2e-2


def test_sides_that_do_not_divide_are_refused(pair):
    ours, params, _ = pair
    with pytest.raises(ValueError, match=r"\(10, 8\) must divide by 4"):
        ours.apply({"params": params}, jnp.zeros((1, 10, 8, 3)), method="encode")
