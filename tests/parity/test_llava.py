"""The MLLM, photo to logits, against transformers' LlavaForConditionalGeneration, with both projectors."""

import re

import jax
import jax.numpy as jnp
import pytest
import torch
import transformers

from mgie_jax.models.clip import CLIPVisionConfig
from mgie_jax.models.llama import LlamaConfig, text_positions
from mgie_jax.models.mllm import MLLM, MLLMConfig
from tests.parity.carry import array, carry, gradient_error, relative_error, relative_l2, stir, tensor

PATCH = 37
VISION = dict(
    hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
)
LLM = dict(
    vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
IDS = jnp.array([[1, 5, PATCH, PATCH, PATCH, PATCH, 6, 7, 8, 9], [2, PATCH, PATCH, PATCH, PATCH, 3, 0, 0, 0, 0]])
MASK = IDS > 0

RENAMES = (
    (r"^model\.vision_tower\.(vision_model\.)?", "vision_tower.vision_model."),
    (r"^model\.language_model\.", "model."),
    (r"^model\.multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
    (r"^model\.multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
    (r"^model\.multi_modal_projector\.", "model.mm_projector."),
)


def rename(key):
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


@pytest.fixture(scope="module", params=["linear", "mlp2x_gelu"])
def pair(request):
    torch.manual_seed(0)
    theirs = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**VISION, initializer_factor=3.0),
            text_config=transformers.LlamaConfig(**LLM, initializer_range=0.2),
            image_token_index=PATCH, image_token_id=PATCH, vision_feature_layer=-2, tie_word_embeddings=False,
        )
    ).eval()  # fmt: skip
    if request.param == "linear":  # the first LLaVA's, which transformers no longer has
        theirs.model.multi_modal_projector = torch.nn.Linear(VISION["hidden_size"], LLM["hidden_size"])
    stir(theirs)
    config = MLLMConfig(CLIPVisionConfig(**VISION), LlamaConfig(**LLM), request.param, im_patch_id=PATCH)
    state = {rename(key): value for key, value in theirs.state_dict().items() if "position_ids" not in key}
    pixels = jnp.zeros((1, 28, 28, 3))
    template = jax.eval_shape(MLLM(config).init, jax.random.key(0), IDS[:1], MASK[:1], pixels)["params"]
    return theirs, config, {"params": carry(template, state)}


@pytest.fixture(scope="module")
def pixels():
    return jax.random.normal(jax.random.key(1), (2, 28, 28, 3))


def forward(model, params, pixels):
    return model.apply(params, model.apply(params, IDS, MASK, pixels), method="logits")


def reference(theirs, pixels):
    return theirs(
        input_ids=tensor(IDS).long(), attention_mask=tensor(MASK).long(), pixel_values=pixels,
        position_ids=tensor(text_positions(MASK)).long(),
    ).logits  # fmt: skip


def test_logits_and_gradients(pair, pixels):
    """For every parameter of the three networks, and the photo."""
    theirs, config, params = pair
    towards = jax.random.normal(jax.random.key(2), (*IDS.shape, LLM["vocab_size"])) * MASK[..., None]

    @jax.jit
    def gradients(params, pixels):
        def loss(params, pixels):
            logits = forward(MLLM(config), params, pixels)
            return (logits * towards).sum(), logits

        (_, logits), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, pixels)
        return logits, *grads

    logits, grads, pixels_grad = gradients(params, pixels)
    x = tensor(pixels, grad=True)
    wanted = reference(theirs, x)
    (wanted * tensor(towards)).sum().backward()
    assert relative_error(logits[MASK], array(wanted)[MASK]) < 1e-4
    assert gradient_error(grads["params"], theirs, rename) < 1e-4
    assert relative_error(pixels_grad, array(x.grad)) < 1e-4


def test_bfloat16_stays_near_the_float32_reference(pair, pixels):
    theirs, config, params = pair
    low = jax.jit(forward, static_argnums=0)(MLLM(config, jnp.bfloat16), params, pixels)
    with torch.no_grad():
        wanted = array(reference(theirs, tensor(pixels)))
    assert relative_l2(low[MASK], wanted[MASK]) < 2e-2
