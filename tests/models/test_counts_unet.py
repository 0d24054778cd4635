"""Parameter counts and guards of the UNet and the edit head, from shapes alone."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from mgie_jax.models.edit_head import EditHead, EditHeadConfig
from mgie_jax.models.unet import UNet2DConditionModel, UNetConfig

TINY = UNetConfig(
    block_out_channels=(8, 16),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    attention_head_dim=2,
    cross_attention_dim=12,
    norm_num_groups=4,
)


def shapes(model, *args):
    return jax.eval_shape(model.init, jax.random.key(0), *args)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def unet_inputs(config):
    context = jnp.zeros((1, 3, config.cross_attention_dim))
    return jnp.zeros((1, 8, 8, config.in_channels)), jnp.zeros(1), context


def test_unet_at_full_size():
    """Stable Diffusion v1.5 has 859,520,964; four more input channels add 4 * 9 * 320."""
    config = UNetConfig()
    params = shapes(UNet2DConditionModel(config), *unet_inputs(config))
    assert count(params) == 859_520_964 + 4 * 9 * 320
    assert params["params"]["conv_in"]["kernel"].shape == (3, 3, 8, 320)


def test_edit_head_at_full_size():
    assert count(shapes(EditHead(EditHeadConfig()), jnp.zeros((1, 8, 4096)))) == 31_958_784


def test_compute_dtype_leaves_parameters_in_float32():
    model = UNet2DConditionModel(TINY, dtype=jnp.bfloat16)
    output, params = jax.eval_shape(model.init_with_output, jax.random.key(0), *unet_inputs(TINY))
    assert output.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


def test_remat_recomputes_every_resnet_and_attention_under_the_same_names():
    plain, remat = UNet2DConditionModel(TINY), UNet2DConditionModel(TINY, remat="blocks")
    args = unet_inputs(TINY)
    params = shapes(plain, *args)
    assert params == shapes(remat, *args)

    def recomputed(model):
        jaxpr = jax.make_jaxpr(model.apply)(params, *args)
        return sum(equation.primitive.name in ("remat", "remat2", "checkpoint") for equation in jaxpr.eqns)

    resnets, attentions = 2 + 2 + 4, 1 + 1 + 2  # down, middle, up
    assert (recomputed(plain), recomputed(remat)) == (0, resnets + attentions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(up_block_types=("UpBlock2D",)), "up_block_types has 1 entries"),
        (dict(down_block_types=("AttnDownBlock2D", "DownBlock2D")), "AttnDownBlock2D"),
        (dict(norm_num_groups=3), "8 is not a multiple of norm_num_groups"),
        (dict(attention_head_dim=3), "8 is not a multiple of attention_head_dim"),
    ],
)
def test_configs_that_cannot_be_built_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_inputs_of_another_width_are_refused():
    sample, t, context = unet_inputs(TINY)
    with pytest.raises(ValueError, match="channels of sample is 4, the config says 8"):
        shapes(UNet2DConditionModel(TINY), sample[..., :4], t, context)
    with pytest.raises(ValueError, match="encoder_hidden_states is 3"):
        shapes(UNet2DConditionModel(TINY), sample, t, context[..., :3])
    with pytest.raises(ValueError, match="width of x is 5, the config says 4096"):
        shapes(EditHead(EditHeadConfig()), jnp.zeros((1, 8, 5)))
