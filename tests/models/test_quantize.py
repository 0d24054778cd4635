"""Int8: which kernels, how well they are kept, and that networks multiply by them as they say."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import linen as nn
from flax.traverse_util import flatten_dict

from mgie_jax.models import presets, quantize
from mgie_jax.models.common import unscan_layers
from mgie_jax.models.llama import init_cache
from mgie_jax.models.mgie import MGIE
from mgie_jax.models.quantize import Quantized, quantize_kernel, quantize_params

CONFIG = presets.test()
FLOAT = MGIE(CONFIG)


@pytest.fixture(scope="module")
def params(tiny_params):
    return jax.tree.map(jnp.asarray, tiny_params)


@pytest.fixture(scope="module")
def small(params):
    return quantize_params(params)


def is_kernel(x):
    return isinstance(x, qwix.QArray)


def by_path(tree):
    return flatten_dict(tree, sep="/", is_leaf=lambda path, x: is_kernel(x))


def rounded(small):
    """The floats that quantized parameters stand for."""
    return jax.tree.map(lambda x: qwix.dequantize(x) if is_kernel(x) else x, small, is_leaf=is_kernel)


def error(got, wanted):
    """Of the norm."""
    got, wanted = (np.asarray(x, np.float64) for x in (got, wanted))
    return np.linalg.norm(got - wanted) / np.linalg.norm(wanted)


def test_nearly_all_of_the_full_size_is_int8():
    shapes = MGIE(presets.mgie_7b()).shapes()
    small = jax.eval_shape(quantize_params, shapes)
    kept = {path: x.qvalue.size for path, x in by_path(small).items() if is_kernel(x)}
    of_llm = sum(size for path, size in kept.items() if path.startswith("mllm/"))
    assert of_llm == 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    unet = sum(x.size for x in jax.tree.leaves(shapes["unet"]))
    assert 0.94 < (sum(kept.values()) - of_llm) / unet < 1
    for left in ("embed_tokens", "lm_head", "vision", "conv_in/", "conv_out", "time_emb", "attn2/to_k", "attn2/to_v"):
        assert not any(left in path for path in kept)
    for pattern in quantize.KERNELS:
        assert any(quantize.re.fullmatch(pattern, path) for path in kept), pattern


@pytest.mark.parametrize("shape, scales", [((6, 5), (1, 5)), ((3, 6, 5), (3, 1, 5)), ((3, 3, 6, 5), (1, 1, 1, 5))])
def test_every_output_has_its_own_scale(shape, scales):
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32) * np.array([1, 1e-3, 1e3, 1, 0], np.float32)
    kept = quantize_kernel(kernel)
    assert kept.qvalue.shape == shape and kept.qvalue.dtype == jnp.int8
    assert kept.scale.shape == scales and kept.scale.dtype == jnp.float32
    assert (np.abs(np.asarray(qwix.dequantize(kept)) - kernel) <= 0.5001 * np.asarray(kept.scale)).all()
    summed = tuple(axis for axis, size in enumerate(scales) if size == 1)
    assert (np.abs(np.asarray(kept.qvalue, int)).max(summed)[..., :4] >= 127).all()


def test_bfloat16_kernels_are_not_rounded_twice():
    kernel = jax.random.normal(jax.random.key(0), (64, 32), jnp.bfloat16)
    kept, exact = quantize_kernel(kernel), quantize_kernel(kernel.astype(jnp.float32))
    assert (kept.qvalue == exact.qvalue).all() and (kept.scale == exact.scale).all()


def test_weights_in_int8_are_what_they_stand_for(params, small):
    """The networks with int8 weights are the float networks with the rounded ones."""
    ids, mask, pixels = inputs(2)
    model, plain = MGIE(CONFIG, quantize="int8_weights"), {"params": rounded(small)["mllm"]}
    got = jax.jit(model.mllm.apply)({"params": small["mllm"]}, ids, mask, pixels)
    assert error(got, jax.jit(FLOAT.mllm.apply)(plain, ids, mask, pixels)) < 1e-5
    shown = latents(2)
    got = jax.jit(model.unet.apply)({"params": small["unet"]}, *shown)
    assert error(got, jax.jit(FLOAT.unet.apply)({"params": rounded(small)["unet"]}, *shown)) < 1e-5
    assert error(got, jax.jit(FLOAT.unet.apply)({"params": params["unet"]}, *shown)) > 1e-3


@pytest.mark.parametrize("mode, dtype, bound", [
    ("int8_weights", jnp.float32, 0.05), ("int8", jnp.float32, 0.08), ("int8", jnp.bfloat16, 0.1)
])  # fmt: skip
def test_networks_say_about_what_they_say_in_float(params, small, mode, dtype, bound):
    """These are 32 to 64 wide, and rounding errors average out over a width."""
    model, (ids, mask, pixels), shown = MGIE(CONFIG, dtype, quantize=mode), inputs(2), latents(2)
    said = jax.jit(model.mllm.apply)({"params": small["mllm"]}, ids, mask, pixels)
    drawn = jax.jit(model.unet.apply)({"params": small["unet"]}, *shown)
    assert said.dtype == drawn.dtype == dtype
    assert 1e-3 < error(said, jax.jit(FLOAT.mllm.apply)({"params": params["mllm"]}, ids, mask, pixels)) < bound
    assert 1e-3 < error(drawn, jax.jit(FLOAT.unet.apply)({"params": params["unet"]}, *shown)) < bound


def test_products_in_int8_are_sums_of_integers():
    """A matmul with a scale for each token, a convolution with one for each image."""
    rng = np.random.default_rng(0)
    x, filters, bias = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 3, 8), (8, 5), (5,)))
    kernel, tokens = quantize_kernel(filters), qwix.quantize(x, jnp.int8, channelwise_axes=(0, 1))
    got = Quantized(nn.Dense(5), activations=True).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    assert tokens.scale.shape == (2, 3, 1)
    summed = np.asarray(tokens.qvalue, int) @ np.asarray(kernel.qvalue, int)
    np.testing.assert_allclose(got, summed * tokens.scale * kernel.scale + bias, rtol=1e-5, atol=1e-6)

    x, filters = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 5, 4, 8), (3, 3, 8, 5)))
    kernel, images = quantize_kernel(filters), qwix.quantize(x, jnp.int8, channelwise_axes=(0,))
    conv = nn.Conv(5, (3, 3), strides=2, padding=((1, 1), (1, 1)))
    got = Quantized(conv, activations=True).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    assert images.scale.shape == (2, 1, 1, 1)
    whole = {"kernel": kernel.qvalue.astype(jnp.float32), "bias": jnp.zeros(5)}
    summed = conv.apply({"params": whole}, images.qvalue.astype(jnp.float32))
    np.testing.assert_allclose(got, summed * images.scale * kernel.scale + bias, rtol=1e-5, atol=1e-6)


def test_integers_are_what_is_multiplied(small):
    """In the compiled arithmetic: int8 times int8 to int32 in every product with a quantized kernel, and no other."""
    model, (ids, mask, pixels), shown = MGIE(CONFIG, jnp.bfloat16, quantize="int8"), inputs(1), latents(1)
    for apply, part, given, wanted in (
        (model.mllm.apply, "mllm", (ids, mask, pixels), 7), (model.unet.apply, "unet", shown, None)
    ):  # fmt: skip
        jaxpr = jax.make_jaxpr(partial(apply))({"params": small[part]}, *given)
        products = [eqn for eqn in equations(jaxpr.jaxpr) if eqn.primitive.name in PRODUCTS]
        whole = [eqn for eqn in products if eqn.invars[0].aval.dtype == eqn.invars[1].aval.dtype == jnp.int8]
        assert all(eqn.outvars[0].aval.dtype == jnp.int32 for eqn in whole)
        kernels = [path for path, x in by_path(small[part]).items() if is_kernel(x)]
        halves = sum("net.0.proj" in path for path in kernels)  # GEGLU's
        assert len(whole) == (wanted or len(kernels) + halves)


PRODUCTS = ("dot_general", "conv_general_dilated")


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for item in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(item, "jaxpr") or hasattr(item, "eqns"):
                    yield from equations(getattr(item, "jaxpr", item))


@pytest.mark.parametrize("mode", quantize.MODES)
def test_layers_apart_are_layers_stacked(small, mode):
    """Also through the cache, as answers are written."""
    ids, mask, pixels = inputs(2)

    def prefill(model, mllm):
        cache = init_cache(CONFIG.mllm.llm, 2, ids.shape[1] + 2)
        return model.mllm.apply({"params": mllm}, ids, mask, pixels, cache, method="prefill")[0]

    apart = unscan_layers(jax.tree.map(lambda x: x, small["mllm"]))
    assert is_kernel(apart["model"]["layers_1"]["mlp"]["up_proj"]["kernel"])
    stacked = jax.jit(partial(prefill, MGIE(CONFIG, quantize=mode)))(small["mllm"])
    got = jax.jit(partial(prefill, MGIE(CONFIG, scan_layers=False, quantize=mode)))(apart)
    assert error(got, stacked) < (1e-5 if mode == "int8_weights" else 1e-2)  # a value may round to its other neighbour


@pytest.mark.parametrize("mode, missing, words", [
    ("int4", False, "choose one of int8, int8_weights"), ("int8", True, r"pip install 'mgie_jax\[int8\]'")
])  # fmt: skip
def test_what_cannot_be(monkeypatch, mode, missing, words):
    if missing:
        monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ValueError, match=words):
        quantize.check(mode)
    quantize.check(None)


def inputs(rows):
    rng, vision = np.random.default_rng(1), CONFIG.mllm.vision
    ids = rng.integers(0, 300, (rows, 12))
    ids[:, 2 : 2 + vision.num_patches] = CONFIG.mllm.im_patch_id
    pixels = rng.normal(size=(rows, vision.image_size, vision.image_size, 3)).astype(np.float32)
    return jnp.asarray(ids), jnp.ones(ids.shape, bool), jnp.asarray(pixels)


def latents(rows):
    rng, unet = np.random.default_rng(2), CONFIG.unet
    x, context = (rows, 8, 6, unet.in_channels), (rows, 7, unet.cross_attention_dim)
    drawn = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (x, context))
    return next(drawn), jnp.linspace(3.0, 900.0, rows), next(drawn)
