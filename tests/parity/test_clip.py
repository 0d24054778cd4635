"""The vision tower against transformers' CLIPVisionModel."""

import jax
import jax.numpy as jnp
import pytest
import torch
import transformers

from mgie_jax.models.clip import CLIPVisionConfig, CLIPVisionModel
from tests.parity.carry import array, carry, gradient_error, relative_error, relative_l2, stir, tensor


def make_pair(hidden_act):
    sizes = dict(
        hidden_size=48, intermediate_size=80, num_hidden_layers=4, num_attention_heads=3,
        image_size=28, patch_size=7, hidden_act=hidden_act,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(**sizes, initializer_factor=3.0, attn_implementation="eager")
    ).eval()
    stir(theirs)
    ours = CLIPVisionModel(CLIPVisionConfig(**sizes))
    # transformers 5 dropped the prefix under which version 4, and published checkpoints, keep the tower.
    state = {with_prefix(key): value for key, value in theirs.state_dict().items()}
    state.pop("vision_model.embeddings.position_ids", None)
    template = jax.eval_shape(ours.init, jax.random.key(0), jnp.zeros((1, 28, 28, 3)))["params"]
    return theirs, ours, {"params": carry(template, state)}


def with_prefix(key):
    return f"vision_model.{key.removeprefix('vision_model.')}"


@pytest.fixture(scope="module")
def pair():
    return make_pair("quick_gelu")


@pytest.fixture(scope="module")
def pixels():
    return jax.random.normal(jax.random.key(0), (2, 28, 28, 3))


def reference(theirs, pixels):
    with torch.no_grad():
        return theirs(tensor(pixels), output_hidden_states=True)


@pytest.mark.parametrize("layer", [-2, -1, 0, 3])
def test_patch_states_of_a_layer(pair, pixels, layer):
    theirs, ours, params = pair
    wanted = reference(theirs, pixels).hidden_states[layer][:, 1:]
    assert relative_error(jax.jit(ours.apply, static_argnums=2)(params, pixels, layer), wanted) < 1e-4


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_last_hidden_state_and_pooled(hidden_act, pixels):
    theirs, ours, params = make_pair(hidden_act)
    wanted = reference(theirs, pixels)
    hidden, pooled = jax.jit(lambda *inputs: ours.apply(*inputs, method="pooled"))(params, pixels)
    assert relative_error(hidden, wanted.last_hidden_state) < 1e-4
    assert relative_error(pooled, wanted.pooler_output) < 1e-4


def test_gradients(pair, pixels):
    """Of a loss that sees every token and the pooled state, for every parameter and the pixels."""
    theirs, ours, params = pair
    towards = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, 17, 48), (2, 48)])]

    @jax.jit
    def gradients(params, pixels):
        def loss(params, pixels):
            outputs = ours.apply(params, pixels, method="pooled")
            return sum((x * to).sum() for x, to in zip(outputs, towards, strict=True))

        return jax.grad(loss, argnums=(0, 1))(params, pixels)

    theirs.zero_grad()
    x = tensor(pixels, grad=True)
    wanted = theirs(x)
    outputs = wanted.last_hidden_state, wanted.pooler_output
    sum((x * tensor(to)).sum() for x, to in zip(outputs, towards, strict=True)).backward()
    grads, pixels_grad = gradients(params, pixels)
    assert gradient_error(grads["params"], theirs, with_prefix) < 1e-4
    assert relative_error(pixels_grad, array(x.grad)) < 1e-4


def test_bfloat16_stays_near_the_float32_reference(pair, pixels):
    theirs, ours, params = pair
    low = jax.jit(CLIPVisionModel(ours.config, jnp.bfloat16).apply)(params, pixels)
    assert low.dtype == jnp.bfloat16
    assert relative_l2(low, reference(theirs, pixels).hidden_states[-2][:, 1:]) < 2e-2


def test_layers_after_the_selected_one_do_not_run(pair, pixels):
    """Poison in the last layer must not reach layer -2."""
    _, ours, params = pair
    layers = params["params"]["vision_model"]["encoder"]["layers"]
    poisoned = jax.tree.map(lambda leaf: leaf.at[-1].set(jnp.nan), layers)
    tower = {**params["params"]["vision_model"], "encoder": {"layers": poisoned}}
    states = ours.apply({"params": {"vision_model": tower}}, pixels)
    assert relative_error(states, ours.apply(params, pixels)) == 0.0


def test_wrong_image_sizes_and_layers_are_refused(pair, pixels):
    _, ours, params = pair
    with pytest.raises(ValueError, match="28, 28, 3"):
        ours.apply(params, pixels[:, :14])
    with pytest.raises(ValueError, match="select_layer -6"):
        ours.apply(params, pixels, -6)
