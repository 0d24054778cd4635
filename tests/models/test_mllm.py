"""The multimodal LLM: where vision features go, and cached decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mgie_jax.models.clip import CLIPVisionConfig
from mgie_jax.models.llama import LlamaConfig, init_cache
from mgie_jax.models.mllm import MLLM, MLLMConfig, replace_patches

PATCH, PATCHES = 37, 4
LLM = LlamaConfig(
    vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip
VISION = CLIPVisionConfig(
    hidden_size=24,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=28,
    patch_size=14,
)
LONG = [1, 5, PATCH, PATCH, PATCH, PATCH, 6, 7, 8, 9]
SHORT = [2, PATCH, PATCH, PATCH, PATCH, 3]


def config(projector="linear"):
    return MLLMConfig(vision=VISION, llm=LLM, mm_projector_type=projector, im_patch_id=PATCH)


def init(config):
    inputs = jnp.array([LONG]), jnp.ones((1, len(LONG)), bool), jnp.zeros((1, 28, 28, 3))
    return jax.jit(MLLM(config).init)(jax.random.key(0), *inputs)


@pytest.fixture(scope="module")
def params():
    return init(config())


@pytest.fixture(scope="module")
def pixels():
    return jax.random.normal(jax.random.key(1), (2, 28, 28, 3))


@jax.jit
def read(params, ids, mask, pixels):
    return MLLM(config()).apply(params, ids, mask, pixels)


def batch(side):
    padding = [0] * (len(LONG) - len(SHORT))
    short, there = (SHORT + padding, 0) if side == "right" else (padding + SHORT, len(padding))
    place = jnp.arange(len(LONG))
    mask = jnp.stack([place >= 0, (place >= there) & (place < there + len(SHORT))])
    return jnp.array([LONG, short]), mask


def test_the_kth_patch_position_gets_the_kth_feature_row_by_row():
    embeds = -jnp.ones((3, 5, 2))
    is_patch = jnp.array([[0, 1, 1, 0, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0]], bool)
    features = jnp.broadcast_to(jnp.array([10.0, 20.0])[:, None], (2, 2)) + jnp.arange(3.0)[:, None, None]
    out = jax.jit(replace_patches)(embeds, is_patch, features)[..., 0]
    assert out.tolist() == [[-1, 10, 20, -1, -1], [11, -1, -1, -1, 21], [-1, -1, -1, -1, -1]]


def test_the_photo_reaches_the_states_after_it_and_none_before(params, pixels):
    ids, mask = jnp.array([LONG, LONG]), jnp.ones((2, len(LONG)), bool)
    hidden = read(params, ids, mask, pixels)
    start = LONG.index(PATCH)
    np.testing.assert_allclose(hidden[0, :start], hidden[1, :start], atol=1e-6)
    assert (jnp.abs(hidden[0, start:] - hidden[1, start:]).max(-1) > 1e-3).all()


def test_the_embedding_row_of_the_patch_token_is_never_read(params, pixels):
    ids, mask = batch("right")
    table = params["params"]["model"]["embed_tokens"]["embedding"].at[PATCH].set(1e3)
    changed = {
        **params["params"],
        "model": {**params["params"]["model"], "embed_tokens": {"embedding": table}},
    }
    again = read({"params": changed}, ids, mask, pixels)
    np.testing.assert_array_equal(again[mask], read(params, ids, mask, pixels)[mask])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_is_the_same_alone_and_padded_in_a_batch(params, pixels, side):
    ids, mask = batch(side)
    together = read(params, ids, mask, pixels)
    for row, prompt in enumerate([LONG, SHORT]):
        whole = jnp.ones((1, len(prompt)), bool)
        alone = read(params, jnp.array([prompt]), whole, pixels[row : row + 1])
        np.testing.assert_allclose(together[row][mask[row]], alone[0], atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_cached_decoding_is_one_uncached_pass(params, pixels, side):
    model = MLLM(config())
    ids, mask = batch(side)
    answer = jnp.array([[11, 12, 13], [21, 22, 23]])
    prefill = jax.jit(lambda *inputs: model.apply(params, *inputs, method="prefill"))
    step = jax.jit(lambda *inputs: model.apply(params, *inputs, method="extend"))
    hidden, cache = prefill(ids, mask, pixels, init_cache(LLM, 2, len(LONG) + 3))
    np.testing.assert_allclose(hidden[mask], read(params, ids, mask, pixels)[mask], atol=1e-5)
    assert cache.next_position.tolist() == [len(LONG), len(SHORT)]
    states = []
    for token in answer.T:
        state, cache = step(token[:, None], jnp.ones((2, 1), bool), cache)
        states.append(state[:, 0])
    for row, prompt in enumerate([LONG, SHORT]):
        text = jnp.concatenate([jnp.array(prompt), answer[row]])[None]
        whole = read(params, text, jnp.ones_like(text, bool), pixels[row : row + 1])
        np.testing.assert_allclose(jnp.stack(states, 1)[row], whole[0, -3:], atol=1e-5)


@pytest.mark.parametrize(
    "projector, keys",
    [("linear", {"kernel", "bias"}), ("mlp2x_gelu", {"0.kernel", "0.bias", "2.kernel", "2.bias"})],
)
def test_parameters_sit_at_the_paths_of_llavas_keys(projector, keys):
    tree = jax.eval_shape(lambda: init(config(projector)))["params"]
    assert set(tree) == {"vision_tower", "model", "lm_head"}
    assert set(tree["vision_tower"]) == {"vision_model"}
    assert set(tree["model"]) == {"embed_tokens", "layers", "norm", "mm_projector"}
    assert {".".join(path) for path in flatten_dict(tree["model"]["mm_projector"])} == keys


def test_a_patch_token_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="im_patch_id 40"):
        MLLMConfig(vision=VISION, llm=LLM, mm_projector_type="linear", im_patch_id=40)
