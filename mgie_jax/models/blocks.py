"""Convolutional pieces that the UNet and the VAE share, named as in diffusers and laid out NHWC."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mgie_jax.models.convolution import conv, conv3x3
from mgie_jax.sharding import BATCH, constrain

Dtype = Any

TIME = "time"
"""A collection of variables: what a step's time adds in each `ResnetBlock2D` (`ahead.times`)."""


class GroupNorm(nn.Module):
    """Group normalisation over (height, width, channels of the group), in float32 whatever `dtype` is.

    The output has `dtype`. Raises ValueError where `groups` does not divide the number of channels.
    """

    groups: int
    eps: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *space c"]) -> Float[Array, "b *space c"]:
        channels = x.shape[-1]
        if channels % self.groups:
            raise ValueError(f"GroupNorm: {self.groups} groups do not divide {channels} channels")
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        # Statistics are taken per channel and then pooled per group: reshaping the channels of the whole
        # activation instead costs a quarter of a training step on CPU. Two passes, because E[x^2] - E[x]^2
        # loses digits on VAE activations, whose mean outweighs their spread.
        space = tuple(range(1, x.ndim - 1))

        def pool(per_channel: Float[Array, "b c"]) -> Float[Array, "b *one c"]:
            grouped = per_channel.reshape(-1, self.groups, channels // self.groups).mean(-1)
            pooled = jnp.repeat(grouped, channels // self.groups, axis=-1)
            return pooled.reshape(-1, *(1 for _ in space), channels)

        x = x.astype(jnp.float32)
        centred = x - pool(x.mean(space))
        gain = jax.lax.rsqrt(pool(jnp.square(centred).mean(space)) + self.eps) * scale.astype(jnp.float32)
        return (centred * gain + bias.astype(jnp.float32)).astype(self.dtype)


class ResnetBlock2D(nn.Module):
    """norm, SiLU, conv, (+ time embedding), norm, SiLU, conv, + input: diffusers' `ResnetBlock2D`.

    The input passes a 1x1 `conv_shortcut` where its width differs from `out_channels`. With `temb` None the block has
    no `time_emb_proj` (the VAE), or finds what it made of the time in the collection `TIME` (`ahead.times`).
    """

    out_channels: int
    groups: int = 32
    eps: float = 1e-5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c_in"], temb: Float[Array, "b t"] | None = None
    ) -> Float[Array, "b h w c_out"]:
        h = nn.silu(GroupNorm(self.groups, self.eps, self.dtype, name="norm1")(x))
        h = conv3x3(self.out_channels, self.dtype, name="conv1")(h)
        if self.has_variable(TIME, "time_emb_proj"):
            h = h + self.get_variable(TIME, "time_emb_proj")
        elif temb is not None:
            shift = nn.Dense(self.out_channels, dtype=self.dtype, name="time_emb_proj")(nn.silu(temb))
            h = h + shift[:, None, None]
        h = nn.silu(GroupNorm(self.groups, self.eps, self.dtype, name="norm2")(h))
        h = conv3x3(self.out_channels, self.dtype, name="conv2")(h)
        if x.shape[-1] != self.out_channels:
            x = conv(self.out_channels, 1, self.dtype, name="conv_shortcut")(x)
        return constrain(x.astype(self.dtype) + h, BATCH)


class Downsample2D(nn.Module):
    """Halve height and width with a stride-2 3x3 conv.

    `padding` 1 pads every side, as the UNet does, so an odd side n gives (n + 1) / 2; `padding` 0 pads
    one row below and one column to the right, as the VAE does.
    """

    channels: int
    padding: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c_out"]:
        padding = ((self.padding, 1),) * 2
        return constrain(conv(self.channels, 3, self.dtype, 2, padding, name="conv")(x), BATCH)


class Upsample2D(nn.Module):
    """Double height and width by nearest neighbour, then a 3x3 conv.

    `size` (height, width), at most the doubled one, crops before the conv. At the sizes the UNet asks
    for, 2n or 2n - 1, this is exactly torch's nearest interpolation to `size`.
    """

    channels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], size: tuple[int, int] | None = None
    ) -> Float[Array, "b h2 w2 c_out"]:
        b, h, w, c = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
        if size is not None:
            x = x[:, : size[0], : size[1]]
        return constrain(conv3x3(self.channels, self.dtype, name="conv")(x), BATCH)
