"""Convolutions are JAX's, values and gradients, whatever they are computed as; only a CPU of one device differs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, use_abstract_mesh

from mgie_jax.models import presets
from mgie_jax.models.convolution import conv, conv3x3, kernel_gradient, side_by_side, strips
from mgie_jax.models.unet import GEGLU
from mgie_jax.sharding import AXES


def plain(x, kernel, strides=1, padding=1):
    pads = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    return jax.lax.conv_general_dilated(x, kernel, (strides,) * 2, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def assert_close(ours, theirs):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * float(jnp.abs(other).max()))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("shape, out", [((1, 8, 7, 5), 6), ((3, 16, 4, 8), 4), ((2, 4, 1, 3), 9)])
def test_strips_side_by_side(count, shape, out):
    x, kernel, g = arrays(shape, (3, 3, shape[-1], out), (*shape[:3], out))
    assert_close(side_by_side(x, kernel, count), plain(x, kernel))
    assert_close(kernel_gradient(x, g), jax.vjp(lambda k: plain(x, k), kernel)[1](g)[0])


@pytest.mark.parametrize(
    "shape, out, window, strides, padding",
    [
        ((1, 32, 32, 32), 64, 3, 1, 1),  # side by side there, and back
        ((4, 32, 32, 64), 192, 3, 1, 1),  # not as it is, but its gradient
        ((3, 32, 32, 96), 64, 3, 1, 1),
        ((2, 30, 32, 64), 64, 3, 1, 1),  # an odd number of rows in each half
        ((1, 16, 12, 3), 8, 3, 1, 1),
        ((2, 9, 7, 6), 8, 3, 2, ((0, 1), (0, 1))),
        ((2, 9, 7, 6), 8, 3, 2, 1),
        ((2, 6, 5, 7), 4, 1, 1, 0),
    ],
)
def test_a_layer_is_jaxs_convolution(shape, out, window, strides, padding):
    x, kernel, bias = arrays(shape, (window, window, shape[-1], out), (out,))
    layer = conv(out, window, jnp.float32, strides, padding)

    def ours(x, kernel):
        return layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)

    def theirs(x, kernel):
        return plain(x, kernel, strides, padding) + bias

    assert_close(ours(x, kernel), theirs(x, kernel))
    gradients = (jax.jit(jax.grad(lambda *io, f=f: jnp.square(f(*io)).mean(), argnums=(0, 1))) for f in (ours, theirs))
    assert_close(*(gradient(x, kernel) for gradient in gradients))


def lowered(platform, x, kernel):
    layer = conv3x3(kernel.shape[-1], jnp.float32)
    apply = jax.jit(lambda x, k: layer.apply({"params": {"kernel": k, "bias": jnp.zeros(k.shape[-1])}}, x))
    return apply.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()


def test_only_a_cpu_and_one_device_lays_rows_side_by_side():
    x, kernel = arrays((2, 32, 32, 64), (3, 3, 64, 64))
    assert strips(x.shape, 64, 64) == 4 and "rhs_dilate = [1, 8]" in lowered("cpu", x, kernel)
    assert strips((64, 64, 64, 3), 3, 32) == strips((64, 64, 64, 32), 32, 3) == 0  # a photo, and its gradient
    for platform in ("tpu", "cuda"):
        text = lowered(platform, x, kernel)
        assert "rhs_dilate = [1, 1]" in text and "rhs_dilate = [1, 8]" not in text
    with use_abstract_mesh(AbstractMesh((2, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3)):
        assert strips(x.shape, 64, 64) == 0
    with use_abstract_mesh(AbstractMesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3)):
        assert strips(x.shape, 64, 64) == 4


def test_no_convolution_of_the_full_size_is_cut():
    model = presets.mgie_7b()
    for widths, side in ((model.unet.block_out_channels, 64), (model.vae.block_out_channels, 512)):
        for channels in widths:
            for out in (*widths, 4, 8, 3):
                assert strips((1, side, side, channels), channels, out) == 0, (channels, out)


def test_geglu_is_the_same_cut_before_and_after():
    (x,) = arrays((2, 5, 16))
    layer = GEGLU(24)
    params = layer.init(jax.random.key(0), x)
    whole = layer.apply(params, x)
    with use_abstract_mesh(AbstractMesh((1, 1, 2), AXES, axis_types=(AxisType.Auto,) * 3)):
        assert "slice" not in str(jax.make_jaxpr(layer.apply)(params, x)).split("dot_general")[-1]
    kernel, bias = params["params"]["kernel"], params["params"]["bias"]
    hidden, gate = jnp.split(x @ kernel + bias, 2, -1)
    assert_close(whole, hidden * jax.nn.gelu(gate, approximate=False))
