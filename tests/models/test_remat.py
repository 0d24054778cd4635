"""A backward pass that recomputes gives the same gradients, in every network that can."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgie_jax.models import presets
from mgie_jax.models.clip import CLIPVisionModel
from mgie_jax.models.common import REMAT_POLICIES
from mgie_jax.models.unet import UNet2DConditionModel, UNetConfig

UNET = UNetConfig(
    block_out_channels=(8,), layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",), attention_head_dim=2, cross_attention_dim=12, norm_num_groups=4,
)  # fmt: skip
VISION = presets.test().mllm.vision


def random_like(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape), x.dtype), shapes)


def unet(remat):
    inputs = random_like([jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 4, 4, 8), (1, 3, 12))])
    return UNet2DConditionModel(UNET, remat=remat), (inputs[0], jnp.ones(1), inputs[1])


def clip(remat):
    size = VISION.image_size
    pixels = random_like(jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32))
    return CLIPVisionModel(VISION, remat=remat), (pixels,)


@cache
def gradients(make, remat):
    model, inputs = make(remat)
    params = random_like(jax.eval_shape(make("none")[0].init, jax.random.key(0), *inputs))

    def loss(params):
        return jnp.square(model.apply(params, *inputs)).mean()

    graded = jax.jit(jax.value_and_grad(loss))
    return graded(params), str(graded.trace(params).jaxpr)


@pytest.mark.parametrize("make", [unet, clip])
def test_gradients_are_the_same(make):
    (value, plain), jaxpr = gradients(make, "none")
    assert "policy=" not in jaxpr and float(value) > 0
    programs = {jaxpr}
    for policy in REMAT_POLICIES:
        (again_value, again), jaxpr = gradients(make, policy)
        np.testing.assert_allclose(again_value, value, rtol=1e-6)
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * max(float(jnp.abs(b).max()), 1e-4))
        programs.add(jaxpr)
    assert len(programs) == 3  # each policy recomputes something else


def test_dots_keeps_convolutions_and_weight_matmuls():
    def counts(policy):
        jaxpr = gradients(unet, policy)[1]
        return jaxpr.count("conv_general_dilated["), jaxpr.count("dot_general[")

    none, dots, blocks = (counts(policy) for policy in ("none", "dots", "blocks"))
    assert dots[0] == none[0] < blocks[0]
    assert none[1] < dots[1] < blocks[1]  # attention's matmuls are computed again


@pytest.mark.parametrize("make", [unet, clip])
def test_an_unknown_policy_is_refused(make):
    (model, inputs), plain = make("some"), make("none")[0]
    params = jax.eval_shape(plain.init, jax.random.key(0), *inputs)
    with pytest.raises(ValueError, match="remat policy 'some'"):
        jax.eval_shape(model.apply, params, *inputs)
