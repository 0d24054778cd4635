"""Layers with parameters of their own compute what stacked ones do, and both trees hold the same numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mgie_jax.models import presets
from mgie_jax.models.common import unscan_layers
from mgie_jax.models.llama import init_cache
from mgie_jax.models.mgie import MGIE

CONFIG = presets.test()
LLM, VISION = CONFIG.mllm.llm, CONFIG.mllm.vision
WIDTH, MORE = 12, 5


def copy(tree):
    """Dicts of its own, the same leaves."""
    return jax.tree.map(lambda leaf: leaf, tree)


@pytest.fixture(scope="module")
def stacked(tiny_params):
    return jax.tree.map(jnp.asarray, tiny_params["mllm"])


@pytest.fixture(scope="module")
def apart(stacked):
    return unscan_layers(copy(stacked))


@partial(jax.jit, static_argnames="scan_layers")
def run(params, scan_layers):
    """States of a padded batch, of a cached continuation, and of the photos."""
    mllm, rng = MGIE(CONFIG, scan_layers=scan_layers).mllm, np.random.default_rng(0)
    apply = partial(mllm.apply, {"params": params})
    ids = jnp.asarray(rng.integers(0, LLM.vocab_size, (2, WIDTH + MORE)))
    mask = jnp.arange(WIDTH) < jnp.array([[WIDTH], [7]])
    pixels = jnp.asarray(rng.standard_normal((2, VISION.image_size, VISION.image_size, 3), np.float32))
    there = mask[..., None]
    hidden, cache = apply(ids[:, :WIDTH], mask, pixels, init_cache(LLM, 2, WIDTH + MORE), method="prefill")
    more, cache = apply(ids[:, WIDTH:], jnp.ones((2, MORE), bool), cache, method="extend")
    whole = apply(ids[:, :WIDTH], mask, pixels)
    return {
        "prefill": jnp.where(there, hidden, 0), "whole": jnp.where(there, whole, 0), "extend": more,
        "keys": cache.keys, "values": cache.values, "photo": apply(pixels, method="encode_image"),
        "logits": apply(more, method="logits"),
    }  # fmt: skip


def test_layers_apart_compute_what_stacked_ones_do(stacked, apart):
    one, other = run(stacked, True), run(apart, False)
    for name, wanted in one.items():
        scale = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(other[name], wanted, rtol=0, atol=2e-6 * scale, err_msg=name)
        assert scale > 0.1, name


def test_the_tree_is_the_one_that_the_separate_modules_make(apart):
    made = MGIE(CONFIG, scan_layers=False).shapes()["mllm"]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), apart) == jax.tree.map(lambda x: (x.shape, x.dtype), made)
    assert f"layers_{LLM.num_hidden_layers - 1}" in apart["model"] and "layers" not in apart["model"]


@pytest.mark.parametrize("kind", [jnp.asarray, np.asarray])
def test_stacked_again_it_is_the_same_tree(stacked, kind):
    given = jax.tree.map(kind, stacked)
    cut = flatten_dict(unscan_layers(copy(given)), sep="/")
    assert all(isinstance(leaf, type(kind(0.0))) for leaf in cut.values())
    for path, leaf in flatten_dict(stacked, sep="/").items():
        if "/layers/" in path:
            parts = [cut.pop(path.replace("/layers/", f"/layers_{i}/")) for i in range(len(leaf))]
            assert len(parts) > 1
            np.testing.assert_array_equal(np.stack(parts), leaf)
        else:
            np.testing.assert_array_equal(cut.pop(path), leaf)
    assert not cut


def test_what_is_given_is_used_up_and_leaves_may_be_trees_themselves():
    quantized = (np.arange(6, dtype=np.int8).reshape(3, 2), np.ones((3, 1), np.float32))
    params = {"norm": {"scale": np.ones(2)}, "layers": {"dense": {"kernel": quantized, "bias": np.zeros((3, 4))}}}
    cut = unscan_layers(params)
    assert not params and set(cut) == {"norm", "layers_0", "layers_1", "layers_2"}
    values, scale = cut["layers_1"]["dense"]["kernel"]
    assert values.dtype == np.int8 and values.tolist() == [2, 3] and scale.shape == (1,)
    assert cut["layers_2"]["dense"]["bias"].shape == (4,)
