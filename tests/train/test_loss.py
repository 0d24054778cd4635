"""The joint loss: what it measures, what it drops, and where its gradient goes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgie_jax.data.generate import EditPairs
from mgie_jax.data.order import GeneratedExamples
from mgie_jax.models import presets
from mgie_jax.models.mgie import MGIE
from mgie_jax.text.prompt import PromptConfig, PromptTokenizer
from mgie_jax.train.batches import EditPairBatches
from mgie_jax.train.loss import drop_conditions, instruction_loss, make_joint_loss
from mgie_jax.train.state import split_params
from mgie_jax.weights.files import load_tokenizer

CONFIG = presets.test()
TRAINED = ("mllm/model/embed_tokens/", "mllm/lm_head/", "edit_head/", "unet/")


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    # The tiny vocabulary spells most words out, so sequences are long.
    tokenizer = load_tokenizer(tiny_model_dir, CONFIG).tokenizer
    prompt = PromptConfig(system="", question="{instruction}", model_max_length=320)
    return PromptTokenizer(tokenizer, CONFIG.mllm.vision.num_patches, prompt)


@pytest.fixture(scope="module")
def batch(tokenizer):
    photos = [np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)]
    examples = GeneratedExamples(EditPairs(photos, size=32))
    made = EditPairBatches(examples, tokenizer, CONFIG, 4, 320, 16)(0, slice(None))
    return jax.tree.map(jnp.asarray, made.arrays)


@pytest.fixture(scope="module")
def graded(tiny_params, tokenizer, batch):
    """A function to (loss, metrics) and gradients, and what it takes before the key; `weight` times L_ins is added."""
    params = {name: tree for name, tree in tiny_params.items() if name != "emb"}
    trained, frozen = split_params(jax.tree.map(jnp.asarray, params), TRAINED)
    joint = make_joint_loss(MGIE(CONFIG), tokenizer.img_ids[0])

    def loss(trained, frozen, batch, key, weight):
        value, metrics = joint(trained, frozen, batch, key)
        return value + weight * metrics["L_ins"], metrics

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return lambda *args, weight=0.0: step(*args, weight), trained, frozen, batch


def test_instruction_loss_by_hand():
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]]]))
    labels = jnp.array([[-100, 1, 2]])
    assert np.isclose(instruction_loss(logits, labels), -(np.log(0.25) + np.log(0.8)) / 2)


def test_conditions_drop_in_the_published_shares():
    u = (jnp.arange(1000) + 0.5) / 1000
    guidance, null = jnp.ones((1000, 1, 1)), jnp.zeros((1, 1, 1))
    text, image = drop_conditions(u, guidance, null, jnp.ones((1000, 1, 1, 1)))
    text, image = text[:, 0, 0] == 0, image[:, 0, 0, 0] == 0
    assert (int((text & ~image).sum()), int((text & image).sum()), int((image & ~text).sum())) == (50, 50, 50)


def test_loss_is_the_weighted_sum_and_repeats_for_a_key(graded):
    step, trained, frozen, batch = graded
    (loss, metrics), _ = step(trained, frozen, batch, jax.random.key(0))
    assert np.isclose(loss, metrics["L_ins"] + 0.5 * metrics["L_edit"], rtol=1e-6)
    (again, _), _ = step(trained, frozen, batch, jax.random.key(0))
    (other, others), _ = step(trained, frozen, batch, jax.random.key(1))
    assert loss == again and loss != other
    assert np.isclose(metrics["L_ins"], others["L_ins"], rtol=1e-5)  # only L_edit draws


def test_every_trained_tensor_gets_a_gradient(graded):
    step, trained, frozen, batch = graded
    _, grads = step(trained, frozen, batch, jax.random.key(0))
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all(), path
        # Without a bias in the logits' softmax, a key's bias moves no attention weight.
        if "in_proj_bias" not in str(path):
            assert np.abs(grad).max() > 0, path


def test_edit_loss_reaches_the_word_embedding_of_the_visual_tokens(graded, tokenizer):
    """The UNet's error travels through the edit head into EMB: the training is joint, not side by side."""
    step, trained, frozen, batch = graded
    _, grads = step(trained, frozen, batch, jax.random.key(0), weight=-1.0)  # 0.5 L_edit is left
    img0 = tokenizer.img_ids[0]
    rows = grads["mllm"]["model"]["embed_tokens"]["embedding"][img0 : img0 + 8]
    assert (np.abs(rows).max(-1) > 0).all()
    assert np.abs(grads["mllm"]["lm_head"]["kernel"]).max() == 0
