"""Attention, in every form it takes, is jax.nn's: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgie_jax.models.common import BLOCKED_FROM, dot_product_attention


def inputs(queries: int, keys: int, heads: int = 4, kv_heads: int = 4, dtype=jnp.float32):
    rng = np.random.default_rng(queries + keys)
    shapes = ((2, queries, heads, 16), (2, keys, kv_heads, 16), (2, keys, kv_heads, 16))
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
