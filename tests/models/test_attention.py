"""Attention, in every form it takes, is jax.nn's, values and gradients; kernels serve the shapes they are for."""

from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, use_abstract_mesh

from mgie_jax.models.attention import BLOCKED_FROM, attend_at_once, attend_splash, dot_product_attention
from mgie_jax.models.common import REMAT_POLICIES
from mgie_jax.models.llama import LlamaConfig, LlamaModel
from mgie_jax.sharding import AXES
from tests.models.meshes import on_meshes

KERNEL = "tpu_custom_call"


def inputs(queries: int, keys: int, heads: int = 4, kv_heads: int = 4, width: int = 16, dtype=jnp.float32):
    rng = np.random.default_rng(queries + keys)
    shapes = ((2, queries, heads, width), (2, keys, kv_heads, width), (2, keys, kv_heads, width))
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


@pytest.mark.parametrize("queries, keys, kv_heads", [(8, 8, 4), (5, 9, 2), (128, 128, 4), (256, 64, 1)])
def test_equals_jax_nn(queries, keys, kv_heads):
    q, k, v = inputs(queries, keys, kv_heads=kv_heads)
    theirs = lambda *x: jax.nn.dot_product_attention(*x, implementation="xla")  # noqa: E731
    np.testing.assert_allclose(dot_product_attention(q, k, v), theirs(q, k, v), atol=2e-6)

    def gradients(f):
        return jax.grad(lambda *x: jnp.square(f(*x)).sum(), argnums=(0, 1, 2))(q, k, v)

    for ours, expected in zip(gradients(dot_product_attention), gradients(theirs), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_mask_bias_and_scale():
    q, k, v = inputs(128, 128)
    rng = np.random.default_rng(0)
    mask, bias = jnp.asarray(rng.random((2, 1, 128, 128)) < 0.5), jnp.asarray(rng.random((1, 4, 128, 128)))
    assert q.shape[1] * k.shape[1] >= BLOCKED_FROM  # the form that takes neither must not be chosen
    theirs = jax.nn.dot_product_attention(q, k, v, mask=mask, bias=bias, scale=0.3, implementation="xla")
    np.testing.assert_allclose(dot_product_attention(q, k, v, mask, bias, 0.3), theirs, atol=2e-6)


@pytest.mark.parametrize("start", [None, 0, 3, "traced"])
def test_valid_keys_and_places_are_a_mask(start):
    q, k, v = inputs(128, 140)
    valid = jnp.arange(140) < jnp.array([[140], [90]])
    place = 5 if start == "traced" else start
    mask = valid[:, None, None, :]
    if start is not None:
        mask &= jnp.arange(140) <= place + jnp.arange(128)[:, None]
    expected = dot_product_attention(q, k, v, mask)
    start = jnp.int32(place) if start == "traced" else start
    np.testing.assert_array_equal(dot_product_attention(q, k, v, valid=valid, start=start), expected)


def test_a_query_that_may_look_nowhere_is_finite():
    q, k, v = inputs(4, 4)
    assert np.isfinite(dot_product_attention(q, k, v, jnp.zeros((1, 1, 4, 4), bool))).all()


@pytest.mark.parametrize("tokens", [16, 256])
def test_half_precision_in_half_precision_out(tokens):
    half = inputs(tokens, tokens, dtype=jnp.bfloat16)
    y = dot_product_attention(*half)
    assert y.dtype == jnp.bfloat16
    exact = dot_product_attention(*(x.astype(jnp.float32) for x in half))
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=2e-2)


def heads_first(*arrays):
    return [jnp.swapaxes(x, 1, 2) for x in arrays]


def value_and_gradients(form, arrays, valid, weight):
    """The output as far as `weight` goes, and the gradients of their product."""

    def product(*x):
        y = form(*x, valid).astype(jnp.float32) * weight
        return y.sum(), y

    (_, y), gradients = jax.jit(jax.value_and_grad(product, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return [y, *(x.astype(jnp.float32) for x in gradients)]


@pytest.mark.parametrize(
    "queries, keys, kv_heads, width, causal, lengths, dtype",
    [
        pytest.param(512, 512, 2, 40, False, None, jnp.float32, id="whole blocks"),
        pytest.param(512, 512, 2, 80, False, None, jnp.bfloat16, id="bfloat16"),
        pytest.param(520, 1160, 2, 24, False, None, jnp.float32, id="no length a multiple, several blocks of keys"),
        pytest.param(512, 512, 1, 64, True, (512, 200), jnp.float32, id="causal, padded on the right, grouped queries"),
        pytest.param(512, 512, 1, 64, True, (512, 200), jnp.bfloat16, id="the same in bfloat16"),
        pytest.param(640, 640, 2, 80, True, (640, -200), jnp.float32, id="causal, padded on the left"),
        pytest.param(520, 650, 2, 160, True, (650, 300), jnp.float32, id="causal with keys to spare"),
    ],
)
def test_the_tpu_kernel_computes_the_same(queries, keys, kv_heads, width, causal, lengths, dtype):
    """Interpreted. Left padding may look nowhere: its finite outputs are nobody's, and what they would weigh is 0."""
    arrays = heads_first(*inputs(queries, keys, 2, kv_heads, width, dtype))
    valid = None
    if lengths is not None:
        place = jnp.arange(keys)
        valid = jnp.stack([place < n if n > 0 else place >= keys + n for n in lengths])
    weight = jnp.asarray(np.random.default_rng(1).standard_normal(arrays[0].shape), jnp.float32)
    if lengths is not None and min(lengths) < 0:
        weight *= valid[:, None, :queries, None]
    scale = width**-0.5
    kernel = partial(attend_splash, scale=scale, causal=causal, interpret=True)
    plain = partial(attend_at_once, scale=scale, start=0 if causal else None, mask=None, bias=None)
    expected = value_and_gradients(plain, arrays, valid, weight)
    for ours, theirs in zip(value_and_gradients(kernel, arrays, valid, weight), expected, strict=True):
        assert np.abs(ours - theirs).max() <= (3e-6 if dtype == jnp.float32 else 1e-2) * np.abs(theirs).max()


def test_the_tpu_kernel_is_finite_where_a_query_may_look_nowhere():
    arrays, valid = heads_first(*inputs(512, 512, 2, 2)), jnp.zeros((2, 512), bool)
    kernel = partial(attend_splash, scale=0.25, causal=True, interpret=True)
    assert all(np.isfinite(x).all() for x in value_and_gradients(kernel, arrays, valid, 1.0))


def lowered(platform: str, form, *arrays) -> str:
    return jax.jit(form).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    "queries, keys, width, more, served",
    [
        pytest.param(4096, 4096, 40, {}, True, id="UNet, 64x64 latents"),
        pytest.param(1024, 1024, 80, {}, True, id="UNet, 32x32"),
        pytest.param(256, 256, 160, {}, False, id="UNet, 16x16"),
        pytest.param(4096, 77, 40, {}, False, id="UNet, guidance"),
        pytest.param(512, 512, 128, {"start": 0, "valid": True}, True, id="LLaMA"),
        pytest.param(512, 768, 128, {"start": 3, "valid": True}, False, id="LLaMA, into a cache that holds tokens"),
        pytest.param(1, 768, 128, {"start": 0, "valid": True}, False, id="LLaMA, one token"),
        pytest.param(257, 257, 64, {}, False, id="CLIP"),
        pytest.param(4096, 4096, 512, {}, True, id="VAE"),
        pytest.param(512, 512, 64, {"bias": True}, False, id="T5"),
        pytest.param(512, 512, 1024, {}, False, id="too wide"),
    ],
)
def test_who_is_served_by_the_tpu_kernel(queries, keys, width, more, served):
    q, k = (jax.ShapeDtypeStruct((2, length, 2, width), jnp.bfloat16) for length in (queries, keys))
    given = {"valid": jnp.ones((2, keys), bool), "bias": jnp.zeros((1, 2, queries, keys))}
    more = {name: given.get(name, value) if value is True else value for name, value in more.items()}

    def form(q, k):
        return dot_product_attention(q, k, k, **more)

    assert (KERNEL in lowered("tpu", form, q, k)) == served
    assert KERNEL not in lowered("cpu", form, q, k) + lowered("cuda", form, q, k)


@pytest.mark.parametrize(
    "width, more, served", [(40, {}, True), (160, {}, False), (40, {"start": 0}, True), (40, {"valid": True}, False)]
)
def test_who_is_served_by_cudnn(width, more, served, monkeypatch):
    """There is none here: a stand-in marks the program, or refuses as JAX does where there is none."""
    here = True

    def stand_in(q, k, v, *, scale, is_causal, implementation):
        assert implementation == "cudnn" and is_causal == ("start" in more)
        if not here:
            raise RuntimeError("cuDNN is not detected.")
        return jnp.cosh(q)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    x = jax.ShapeDtypeStruct((2, 512, 2, width), jnp.bfloat16)
    more = {name: jnp.ones((2, 512), bool) if value is True else value for name, value in more.items()}

    def marked(platform: str) -> bool:
        return "cosh" in lowered(platform, lambda q: dot_product_attention(q, q, q, **more), x)

    assert marked("cuda") == served and not marked("cpu") and not marked("tpu")
    here = False
    assert not marked("cuda")


@pytest.mark.parametrize("mesh", [None, AbstractMesh((1, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3)])
@pytest.mark.parametrize("policy", ["none", *REMAT_POLICIES])
def test_scanned_layers_train_through_the_kernel(policy, mesh):
    """Forward, and with the policies again in the backward pass, which has one kernel more."""
    model = LlamaModel(LlamaConfig(16, 32, 32, 2, 2, 1), jnp.float32, policy)
    x, mask = jnp.zeros((2, 512, 32)), jnp.ones((2, 512), bool)
    positions = jnp.broadcast_to(jnp.arange(512), (2, 512))
    params = jax.eval_shape(model.init, jax.random.key(0), x, positions, mask)
    loss = lambda params: model.apply(params, x, positions, mask)[0].sum()  # noqa: E731
    with nullcontext() if mesh is None else use_abstract_mesh(mesh):
        program = lowered("tpu", jax.value_and_grad(loss), params)
    assert program.count(KERNEL) == (2 if policy == "none" else 3)


def test_on_any_mesh_each_device_serves_its_rows_and_heads(tmp_path):
    """Where neither divides, too. Interpreted, on forced CPU devices."""
    found = on_meshes(tmp_path / "out.npz", ("1,1,1", "1,2,2", "1,1,4"))
    expected = found.pop("1,1,1")
    assert set(expected) == {f"{case}/{what}" for case in ("even", "odd") for what in ("y", "q", "k", "v")}
    for mesh, arrays in found.items():
        for name, value in arrays.items():
            np.testing.assert_allclose(value, expected[name], atol=1e-5, err_msg=f"{mesh} {name}")
