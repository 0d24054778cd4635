"""Convolutions: what they are computed as, where that is not one instruction.

XLA for CPUs shares a convolution among its threads by the pixels of a row and the output channels, not by rows or
images (YNNPACK, jax 0.10). A row of a small network is too little to share: 32 pixels of 64 channels, or 128 of 32,
run on one thread. Laid side by side, pixel by pixel, the rows of several images or of several strips of one are a
single long row, over which a kernel dilated by their number does what it did on each.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from mgie_jax.sharding import on_one_device

LONG_ENOUGH = 2**14  # pixels of a row, times output channels: measured on two cores, of 32 to 192 channels
FEWEST = 16  # channels; a photo's three are quicker padded to four
WORTH_IT = 2**25  # FLOPs; below, copies cost more than threads save
NHWC = ("NHWC", "HWIO", "NHWC")

Images = Float[Array, "b h w c"]
Made = Float[Array, "b h w d"]
Kernel = Float[Array, "3 3 c d"]


def conv(
    channels: int, window: int, dtype: Dtype, strides: int = 1, padding: int | tuple = 0, name: str | None = None
) -> nn.Conv:
    """A square convolution of NHWC images; with a `name`, to be called inside a compact `__call__`."""
    return nn.Conv(
        channels, (window, window), strides, padding, dtype=dtype, conv_general_dilated=_convolve, name=name
    )  # fmt: skip


def conv3x3(channels: int, dtype: Dtype, name: str | None = None) -> nn.Conv:
    """A 3x3 convolution that keeps height and width."""
    return conv(channels, 3, dtype, padding=1, name=name)


def _convolve(
    x: Images, kernel: Float[Array, "h2 w2 c d"], strides: Sequence[int], padding: Sequence, **options
) -> Float[Array, "b h3 w3 d"]:
    """`jax.lax.conv_general_dilated`, as `nn.Conv` calls it."""
    if kernel.shape[:2] == (1, 1) and set(strides) == {1}:
        return x @ kernel[0, 0]  # two to three times as fast on a CPU
    if set(strides) == {1} and set(padding) == {(1, 1)} and kernel.shape[:2] == (3, 3):
        c, d = kernel.shape[2:]
        if x.dtype == jnp.float32 and (strips(x.shape, c, d) or strips(x.shape, d, c)):
            return _same3x3(x, kernel)
    # With channels of zeros up to a multiple of four: over twice as fast on a CPU as of three.
    more = -x.shape[-1] % 4
    x, kernel = jnp.pad(x, ((0, 0),) * 3 + ((0, more),)), jnp.pad(kernel, ((0, 0), (0, 0), (0, more), (0, 0)))
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)


def strips(shape: tuple[int, int, int, int], channels: int, out: int) -> int:
    """How many strips to cut images into, so that rows side by side are long enough; 0: leave them as they are.

    Strips share two rows with their neighbours, which are computed twice.

    Args:
        shape: of the images, or of their gradient.
        channels, out: before and after the convolution.
    """
    b, h, w = shape[:3]
    shared = out >= 256 or (out >= 128 and channels >= 80)
    if shared or min(channels, out) < FEWEST or 18 * b * h * w * channels * out < WORTH_IT or not on_one_device():
        return 0
    for count in (1, 2, 4, 8):
        if h % count == 0 and h // count >= 4 and count * b * w * out >= LONG_ENOUGH:
            return count
    return 0


@jax.custom_vjp
def _same3x3(x: Images, kernel: Kernel) -> Made:
    count = strips(x.shape, *kernel.shape[2:])
    if not count:
        return _plain(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=lambda *io: side_by_side(*io, count), default=_plain)


def _forward(x: Images, kernel: Kernel) -> tuple[Made, tuple]:
    return _same3x3(x, kernel), (x, kernel)


def _backward(kept: tuple, g: Made) -> tuple[Images, Kernel]:
    x, kernel = kept
    of_kernel = _kernel_gradient
    if min(kernel.shape[2:]) >= 64:
        of_kernel = lambda *xg: jax.lax.platform_dependent(*xg, cpu=kernel_gradient, default=_kernel_gradient)  # noqa: E731
    return _same3x3(g, kernel[::-1, ::-1].swapaxes(2, 3)), of_kernel(x, g)


_same3x3.defvjp(_forward, _backward)


def _plain(x: Images, kernel: Kernel) -> Made:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)


def _kernel_gradient(x: Images, g: Made) -> Kernel:
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[-1], g.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda k: _plain(x, k), kernel)(g)[0]


def side_by_side(x: Images, kernel: Kernel, count: int) -> Made:
    """`_plain`, of `count` strips of each image: rows as long as strips are many."""
    b, h, w, c = x.shape
    rows = h // count
    x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    x = jnp.stack([x[:, i * rows : (i + 1) * rows + 2] for i in range(count)], 1)
    n = b * count
    x = x.reshape(n, rows + 2, w, c).transpose(1, 2, 0, 3).reshape(1, rows + 2, w * n, c)
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((0, 0), (n, n)), rhs_dilation=(1, n), dimension_numbers=NHWC
    )  # fmt: skip
    return y.reshape(rows, w, n, -1).transpose(2, 0, 1, 3).reshape(b, h, w, -1)


def kernel_gradient(x: Images, g: Made) -> Kernel:
    """The gradient of `_plain` for its kernel: as a convolution of x by g, with x's channels side by side."""
    b, h, w, c = x.shape
    x = x.transpose(1, 2, 3, 0).reshape(1, h, w * c, b)
    y = jax.lax.conv_general_dilated(
        x, g.transpose(1, 2, 0, 3), (1, 1), ((1, 1), (c, c)), rhs_dilation=(1, c), dimension_numbers=NHWC
    )  # fmt: skip
    return y.reshape(3, 3, c, -1)
