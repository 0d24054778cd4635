"""AutoencoderKL: the latent space the edit happens in (Stable Diffusion v1.5's, at any widths).

Parameter paths are the keys of diffusers' `AutoencoderKL`.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.typing import Dtype
from jaxtyping import Array, Float, Key

from mgie_jax.models.attention import dot_product_attention
from mgie_jax.models.blocks import Downsample2D, GroupNorm, ResnetBlock2D, Upsample2D
from mgie_jax.models.convolution import conv, conv3x3
from mgie_jax.sharding import BATCH, constrain


@dataclass(frozen=True)
class VAEConfig:
    """Sizes, named as in diffusers' `vae/config.json`; the defaults are Stable Diffusion v1.5's."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    sample_size: int = 512

    @property
    def downsampling(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.block_out_channels) - 1)


@struct.dataclass
class DiagonalGaussian:
    """The encoder's posterior over latents, unscaled."""

    mean: Float[Array, "b h w c"]
    logvar: Float[Array, "b h w c"]

    def mode(self) -> Float[Array, "b h w c"]:
        """The most likely latents."""
        return self.mean

    def sample(self, noise: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Latents drawn with the given standard normal noise."""
        return self.mean + jnp.exp(0.5 * self.logvar) * noise

    def kl(self) -> Float[Array, " b"]:
        """KL divergence to the standard normal, summed over each example's latents, in nats."""
        terms = self.mean**2 + jnp.exp(self.logvar) - 1.0 - self.logvar
        return 0.5 * terms.sum((1, 2, 3))


class _Attention(nn.Module):
    """Single-head self-attention over all positions, with a residual connection."""

    groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        tokens = GroupNorm(self.groups, 1e-6, self.dtype, name="group_norm")(x).reshape(b, h * w, c)
        q, k, v = (nn.Dense(c, dtype=self.dtype, name=name)(tokens)[:, :, None] for name in ("to_q", "to_k", "to_v"))
        mixed = dot_product_attention(q, k, v)[:, :, 0]
        return x + nn.Dense(c, dtype=self.dtype, name="to_out.0")(mixed).reshape(x.shape)


class _MidBlock(nn.Module):
    channels: int
    groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = ResnetBlock2D(self.channels, self.groups, 1e-6, self.dtype, name="resnets.0")(x)
        x = _Attention(self.groups, self.dtype, name="attentions.0")(x)
        return ResnetBlock2D(self.channels, self.groups, 1e-6, self.dtype, name="resnets.1")(x)


class _Block(nn.Module):
    """Residual layers at one resolution, then a change of resolution unless this is the last level."""

    channels: int
    layers: int
    groups: int
    resample: str | None  # "down", "up" or None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        for j in range(self.layers):
            x = ResnetBlock2D(self.channels, self.groups, 1e-6, self.dtype, name=f"resnets.{j}")(x)
        if self.resample == "down":
            x = Downsample2D(self.channels, padding=0, dtype=self.dtype, name="downsamplers.0")(x)
        elif self.resample == "up":
            x = Upsample2D(self.channels, dtype=self.dtype, name="upsamplers.0")(x)
        return x


class Encoder(nn.Module):
    """Photo -> mean and log-variance, stacked on the channel axis."""

    config: VAEConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        config, widths = self.config, self.config.block_out_channels
        groups = config.norm_num_groups
        x = constrain(conv3x3(widths[0], self.dtype, name="conv_in")(x), BATCH)
        for i, width in enumerate(widths):
            resample = "down" if i < len(widths) - 1 else None
            x = _Block(width, config.layers_per_block, groups, resample, self.dtype, name=f"down_blocks.{i}")(x)
        x = _MidBlock(widths[-1], groups, self.dtype, name="mid_block")(x)
        x = nn.silu(GroupNorm(groups, 1e-6, self.dtype, name="conv_norm_out")(x))
        return conv3x3(2 * config.latent_channels, self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Latents -> photo."""

    config: VAEConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, z: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        config, widths = self.config, self.config.block_out_channels[::-1]
        groups = config.norm_num_groups
        x = constrain(conv3x3(widths[0], self.dtype, name="conv_in")(z), BATCH)
        x = _MidBlock(widths[0], groups, self.dtype, name="mid_block")(x)
        for i, width in enumerate(widths):
            resample = "up" if i < len(widths) - 1 else None
            x = _Block(width, config.layers_per_block + 1, groups, resample, self.dtype, name=f"up_blocks.{i}")(x)
        x = nn.silu(GroupNorm(groups, 1e-6, self.dtype, name="conv_norm_out")(x))
        return conv3x3(config.out_channels, self.dtype, name="conv_out")(x)


class AutoencoderKL(nn.Module):
    """Photos in [-1, 1] to unscaled latents and back; `h` and `w` must divide by `config.downsampling`."""

    config: VAEConfig
    dtype: Dtype = jnp.float32

    def setup(self):
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)
        self.quant_conv = conv(2 * self.config.latent_channels, 1, self.dtype)
        self.post_quant_conv = conv(self.config.latent_channels, 1, self.dtype)

    def encode(self, pixels: Float[Array, "b h w c"]) -> DiagonalGaussian:
        """The posterior over latents of photos in [-1, 1], in float32.

        Raises:
            ValueError: the sides do not divide by the downsampling factor.
        """
        f = self.config.downsampling
        if pixels.shape[1] % f or pixels.shape[2] % f:
            raise ValueError(f"photo sides {pixels.shape[1:3]} must divide by {f}; crop or resize it first")
        mean, logvar = jnp.split(self.quant_conv(self.encoder(pixels)).astype(jnp.float32), 2, axis=-1)
        return DiagonalGaussian(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Photos, nominally in [-1, 1] (not clipped), of unscaled latents, in float32."""
        return self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)

    def __call__(self, pixels: Float[Array, "b h w c"], key: Key[Array, ""]) -> tuple[Array, DiagonalGaussian]:
        """Reconstruction from sampled latents, and the posterior: the training pass."""
        posterior = self.encode(pixels)
        noise = jax.random.normal(key, posterior.mean.shape)
        return self.decode(posterior.sample(noise)), posterior
