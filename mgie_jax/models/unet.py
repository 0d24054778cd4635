"""The conditional UNet of Stable Diffusion v1.5, any widths (diffusers' `UNet2DConditionModel`), NHWC."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Real

from mgie_jax.models.attention import dot_product_attention
from mgie_jax.models.blocks import Downsample2D, GroupNorm, ResnetBlock2D, Upsample2D
from mgie_jax.models.common import remat
from mgie_jax.models.convolution import conv, conv3x3
from mgie_jax.sharding import BATCH, constrain, on_one_device

Dtype = Any

AHEAD, PHOTO = "ahead", "photo"
"""A collection of variables: keys and values of the guidance in each `Attention`, and what the photo adds to the first
convolution (`ahead.guidance_and_photo`)."""

DOWN_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D")
UP_BLOCKS = ("CrossAttnUpBlock2D", "UpBlock2D")


@dataclass(frozen=True)
class UNetConfig:
    """Fields of diffusers' `unet/config.json`; the defaults are SD v1.5 with InstructPix2Pix's 8 channels.

    `attention_head_dim` keeps SD v1.5's misnomer: it is the *number* of heads, the same at each level.
    Levels are listed from the finest down in `down_block_types` and `block_out_channels`, and from the
    coarsest up in `up_block_types`; the `CrossAttn` types have attention. Raises ValueError where the
    three disagree on the number of levels, name a block of another kind, or where a width does not divide
    into the groups or heads.
    """

    in_channels: int = 8
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    attention_head_dim: int = 8
    cross_attention_dim: int = 768
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    sample_size: int = 64

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for name, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            types = getattr(self, name)
            if len(types) != levels:
                raise ValueError(f"{name} has {len(types)} entries, block_out_channels {levels}")
            if unknown := set(types) - set(known):
                raise ValueError(f"{name}: {sorted(unknown)} not in {known}")
        for channels in self.block_out_channels:
            for divisor in ("norm_num_groups", "attention_head_dim"):
                if channels % getattr(self, divisor):
                    raise ValueError(f"block_out_channels: {channels} is not a multiple of {divisor}")


def timestep_embedding(timesteps: Real[Array, " b"], width: int) -> Float[Array, "b width"]:
    """Sinusoids, cosines first (`flip_sin_to_cos=True, freq_shift=0`), float32. `width` is even."""
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedding(nn.Module):
    """The two-layer SiLU MLP on the sinusoids."""

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b t"]:
        x = nn.silu(nn.Dense(self.width, dtype=self.dtype, name="linear_1")(x))
        return nn.Dense(self.width, dtype=self.dtype, name="linear_2")(x)


class Attention(nn.Module):
    """Multi-head attention from `x` to `context`, which may be None where `AHEAD` has its keys and values.

    No bias on q, k, v; softmax in float32.
    """

    heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"], context: Float[Array, "b m d"] | None) -> Float[Array, "b l c"]:
        channels = x.shape[-1]

        def project(inputs, name):
            if self.has_variable(AHEAD, name):
                y = self.get_variable(AHEAD, name)
            else:
                y = nn.Dense(channels, use_bias=False, dtype=self.dtype, name=name)(inputs)
            return y.reshape(*y.shape[:-1], self.heads, channels // self.heads)

        q, k, v = project(x, "to_q"), project(context, "to_k"), project(context, "to_v")
        y = dot_product_attention(q, k, v)
        return nn.Dense(channels, dtype=self.dtype, name="to_out.0")(y.reshape(x.shape))


class GEGLU(nn.Module):
    """x W + b, of which one half is let through by the exact GELU of the other (arXiv 2002.05202), to `width`.

    The kernel holds both halves side by side, as PyTorch's does. On a mesh they are cut apart before the product, so
    that over `tensor` each device has the same columns of both. (Reshaped to (channels, 2, width) it would be laid out
    anew on a TPU, and its gradient again.) One device need not copy them to do so: it cuts the product.
    """

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l w"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], 2 * self.width))
        bias = self.param("bias", nn.initializers.zeros_init(), (2 * self.width,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)

        if on_one_device():
            hidden, gate = jnp.split(x @ kernel + bias, 2, axis=-1)
            return hidden * nn.gelu(gate, approximate=False)

        def half(kernel, bias):
            return x @ constrain(kernel, PartitionSpec("fsdp", "tensor")) + bias

        hidden = half(kernel[:, : self.width], bias[: self.width])
        gate = half(kernel[:, self.width :], bias[self.width :])
        return hidden * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and back."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        channels = x.shape[-1]
        hidden = GEGLU(4 * channels, self.dtype, name="net.0.proj")(x)
        return nn.Dense(channels, dtype=self.dtype, name="net.2")(hidden)


class BasicTransformerBlock(nn.Module):
    """Pre-norm self-attention, cross-attention to the guidance, feed-forward."""

    heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"], context: Float[Array, "b q d"] | None) -> Float[Array, "b l c"]:
        def norm(name):
            return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name=name)

        h = norm("norm1")(x)
        x = x + Attention(self.heads, self.dtype, name="attn1")(h, h)
        x = x + Attention(self.heads, self.dtype, name="attn2")(norm("norm2")(x), context)
        return x + FeedForward(self.dtype, name="ff")(norm("norm3")(x))


class Transformer2DModel(nn.Module):
    """One transformer block over the pixels of a feature map, between 1x1 convs, residual."""

    heads: int
    groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], context: Float[Array, "b q d"] | None) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        y = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x)
        y = conv(c, 1, self.dtype, name="proj_in")(y).reshape(b, h * w, c)
        y = BasicTransformerBlock(self.heads, self.dtype, name="transformer_blocks.0")(y, context)
        return constrain(x + conv(c, 1, self.dtype, name="proj_out")(y.reshape(b, h, w, c)), BATCH)


class _Level(nn.Module):
    """What the blocks of every level have in common: how to make their resnets and attentions."""

    config: UNetConfig
    channels: int
    attention: bool
    dtype: Dtype
    remat: str

    def resnet(self, i: int) -> nn.Module:
        c, block = self.config, remat(ResnetBlock2D, self.remat)
        return block(self.channels, c.norm_num_groups, c.norm_eps, self.dtype, name=f"resnets.{i}")

    def attend(self, i: int, x: Array, context: Array | None) -> Array:
        if not self.attention:
            return x
        c, block = self.config, remat(Transformer2DModel, self.remat)
        return block(c.attention_head_dim, c.norm_num_groups, self.dtype, name=f"attentions.{i}")(x, context)


class DownBlock(_Level):
    """`CrossAttnDownBlock2D` or, without attention, `DownBlock2D`. Returns the output and the skips."""

    downsample: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], temb: Float[Array, "b t"] | None, context: Float[Array, "b q d"] | None
    ) -> tuple[Float[Array, "b h2 w2 c2"], list[Float[Array, "b _h _w c2"]]]:
        skips = []
        for i in range(self.config.layers_per_block):
            x = self.attend(i, self.resnet(i)(x, temb), context)
            skips.append(x)
        if self.downsample:
            x = Downsample2D(self.channels, dtype=self.dtype, name="downsamplers.0")(x)
            skips.append(x)
        return x, skips


class MidBlock(_Level):
    """`UNetMidBlock2DCrossAttn`: resnet, attention, resnet."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], temb: Float[Array, "b t"] | None, context: Float[Array, "b q d"] | None
    ) -> Float[Array, "b h w c"]:
        x = self.attend(0, self.resnet(0)(x, temb), context)
        return self.resnet(1)(x, temb)


class UpBlock(_Level):
    """`CrossAttnUpBlock2D` or, without attention, `UpBlock2D`.

    `skips` are used last first, each concatenated after `x`. `size` is the height and width that the next
    level's skips have; None at the finest level, which does not upsample.
    """

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        skips: list[Float[Array, "b h w _c"]],
        temb: Float[Array, "b t"] | None,
        context: Float[Array, "b q d"] | None,
        size: tuple[int, int] | None,
    ) -> Float[Array, "b h2 w2 c2"]:
        for i, skip in enumerate(reversed(skips)):
            x = self.attend(i, self.resnet(i)(jnp.concatenate([x, skip], axis=-1), temb), context)
        if size is not None:
            x = Upsample2D(self.channels, dtype=self.dtype, name="upsamplers.0")(x, size)
        return x


class UNet2DConditionModel(nn.Module):
    """Predicts the noise (or v) in a latent, given the time and the guidance.

    Any height and width will do: where one does not halve evenly at each level, the upsampled features are
    cropped to their skip, as diffusers does. `remat`: what the backward pass recomputes in each resnet and
    attention (`common.remat`). The output has `dtype`.

    Given the collections `AHEAD` and `TIME` (module `ahead`), it takes the noisy latents alone and returns the n
    branches of each row, side by side.
    """

    config: UNetConfig
    dtype: Dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        sample: Float[Array, "b h w c_in"],
        timesteps: Real[Array, " b"] | None = None,
        encoder_hidden_states: Float[Array, "b q d"] | None = None,
    ) -> Float[Array, "bn h w c_out"]:
        c = self.config
        finest, levels = c.block_out_channels[0], len(c.block_out_channels)
        stem = conv3x3(finest, self.dtype, name="conv_in")
        if self.has_variable(AHEAD, PHOTO):
            photo, context, temb = self.get_variable(AHEAD, PHOTO), None, None
            blank = ((0, 0),) * 3 + ((0, c.in_channels - sample.shape[-1]),)
            x = (stem(jnp.pad(sample.astype(self.dtype), blank))[:, None] + photo).reshape(-1, *photo.shape[2:])
        else:
            self._check(sample, encoder_hidden_states)
            context = encoder_hidden_states.astype(self.dtype)
            temb = timestep_embedding(timesteps, finest).astype(self.dtype)
            temb = TimestepEmbedding(4 * finest, self.dtype, name="time_embedding")(temb)
            x = stem(sample.astype(self.dtype))
        x = constrain(x, BATCH)
        skips = [x]
        for i, (channels, kind) in enumerate(zip(c.block_out_channels, c.down_block_types, strict=True)):
            level = (c, channels, kind == "CrossAttnDownBlock2D", self.dtype, self.remat)
            x, more = DownBlock(*level, downsample=i < levels - 1, name=f"down_blocks.{i}")(x, temb, context)
            skips += more

        level = (c, c.block_out_channels[-1], True, self.dtype, self.remat)
        x = MidBlock(*level, name="mid_block")(x, temb, context)

        for i, (channels, kind) in enumerate(zip(c.block_out_channels[::-1], c.up_block_types, strict=True)):
            skips, mine = skips[: -c.layers_per_block - 1], skips[-c.layers_per_block - 1 :]
            size = skips[-1].shape[1:3] if skips else None
            level = (c, channels, kind == "CrossAttnUpBlock2D", self.dtype, self.remat)
            x = UpBlock(*level, name=f"up_blocks.{i}")(x, mine, temb, context, size)

        x = nn.silu(GroupNorm(c.norm_num_groups, c.norm_eps, self.dtype, name="conv_norm_out")(x))
        return constrain(conv3x3(c.out_channels, self.dtype, name="conv_out")(x), BATCH)

    def _check(self, sample: Array, encoder_hidden_states: Array) -> None:
        for name, got, want in (
            ("channels of sample", sample.shape[-1], self.config.in_channels),
            ("width of encoder_hidden_states", encoder_hidden_states.shape[-1], self.config.cross_attention_dim),
        ):
            if got != want:
                raise ValueError(f"UNet: {name} is {got}, the config says {want}")
