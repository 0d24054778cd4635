"""FLOPs of a jaxpr: as counted by hand, as XLA counts where nothing loops, and as often as loops turn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from mgie_jax.plan.count import ends_by_data, flops, kernel_flops
from mgie_jax.plan.hlo import Module
from mgie_jax.plan.traffic import Mesh, traffic

X, W = jnp.ones((4, 32, 64)), jnp.ones((64, 128))
PHOTO, KERNEL = jnp.ones((2, 18, 18, 8)), jnp.ones((3, 3, 8, 16))


def convolve(x, kernel, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


@pytest.mark.parametrize(
    "program, arguments, counted",
    [
        (jnp.dot, (X, W), 2 * 4 * 32 * 64 * 128),
        (lambda x: jnp.einsum("bqd,bkd->bqk", x, x), (X,), 2 * 4 * 32 * 32 * 64),
        (convolve, (PHOTO, KERNEL), 2 * (2 * 16 * 16 * 16) * (3 * 3 * 8)),
        (lambda x, w: convolve(x, w, stride=2), (PHOTO, KERNEL), 2 * (2 * 8 * 8 * 16) * (3 * 3 * 8)),
        (lambda x, w: convolve(x, w[:, :, :2], groups=4), (PHOTO, KERNEL), 2 * (2 * 16 * 16 * 16) * (3 * 3 * 2)),
    ],
    ids=["dot", "batches of dots", "convolution", "with strides", "in groups"],
)
def test_by_hand_by_xla_and_as_compiled(program, arguments, counted):
    assert flops(jax.make_jaxpr(program)(*arguments).jaxpr) == counted
    compiled = jax.jit(program).lower(*arguments).compile()
    assert compiled.cost_analysis()["flops"] == pytest.approx(counted, rel=0.01)
    work = traffic(Module.parse(compiled.as_text()), Mesh(("data",), (1,)))
    assert work.flops == counted


def test_forward_and_backward_of_a_loop_free_program_as_xla_counts():
    def loss(x, w, kernel):
        return (convolve(x, kernel).reshape(-1, 64) @ w).sum()

    grads = jax.value_and_grad(loss, argnums=(0, 1, 2))
    counted = flops(jax.make_jaxpr(grads)(PHOTO, W, KERNEL).jaxpr)
    forward, product = 2 * (2 * 16 * 16 * 16) * (3 * 3 * 8), 2 * 128 * 64 * 128
    # A convolution's gradient by its input is a convolution of a padded array: XLA leaves the padding out.
    padding = forward * (18**2 / 16**2 - 1)
    assert counted == 3 * forward + padding + 3 * product
    by_xla = jax.jit(grads).lower(PHOTO, W, KERNEL).compile().cost_analysis()["flops"]
    assert by_xla == pytest.approx(counted - padding, rel=0.01)


def test_a_scan_counts_as_often_as_it_turns_and_what_is_recomputed_counts():
    def layers(x, ws, remat):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        return jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, ws)[0].sum()

    x, ws = jnp.ones((16, 64)), jnp.ones((7, 64, 64))
    product = 2 * 16 * 64 * 64
    for remat, products in ((False, 3), (True, 4)):
        jaxpr = jax.make_jaxpr(jax.grad(lambda x, ws, r=remat: layers(x, ws, r), argnums=(0, 1)))(x, ws)
        assert flops(jaxpr.jaxpr) == 7 * products * product


def test_a_loop_that_ends_by_its_data_counts_as_often_as_it_is_said_to_turn():
    def program(x, w):
        return jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ w, x)

    jaxpr = jax.make_jaxpr(program)(jnp.ones((8, 8)), jnp.ones((8, 8))).jaxpr
    assert ends_by_data(jaxpr) and flops(jaxpr, 5) == 5 * 2 * 8**3
    with pytest.raises(ValueError, match="how often"):
        flops(jaxpr)


def test_of_loops_that_end_by_their_data_the_inner_one_has_all_the_turns():
    def program(x, w):
        def turn(x):
            return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ w, x) @ w @ w

        return jax.lax.while_loop(lambda x: x.sum() > 0, turn, x)

    x = jnp.ones((8, 8))
    assert flops(jax.make_jaxpr(program)(x, x).jaxpr, 5) == (5 + 2) * 2 * 8**3
    compiled = jax.jit(program).lower(x, x).compile().as_text()
    assert traffic(Module.parse(compiled), Mesh(("data",), (1,)), 5).flops == (5 + 2) * 2 * 8**3


def test_of_a_condition_the_largest_branch_counts():
    def program(i, x):
        return jax.lax.switch(i, [lambda x: x, lambda x: x @ x @ x, lambda x: x @ x], x)

    assert flops(jax.make_jaxpr(program)(0, jnp.ones((8, 8))).jaxpr) == 2 * 2 * 8**3


def test_a_kernel_counts_for_each_step_of_its_grid():
    def kernel(x, w, out):
        out[...] = x[...] @ w[...]

    def program(x, w):
        tiled = pl.pallas_call(
            kernel,
            grid=(4,),
            in_specs=[pl.BlockSpec((8, 16), lambda i: (i, 0)), pl.BlockSpec((16, 16), lambda i: (0, 0))],
            out_specs=pl.BlockSpec((8, 16), lambda i: (i, 0)),
            out_shape=jax.ShapeDtypeStruct((32, 16), jnp.float32),
        )(x, w)
        return tiled @ w

    jaxpr = jax.make_jaxpr(program)(jnp.ones((32, 16)), jnp.ones((16, 16))).jaxpr
    assert kernel_flops(jaxpr) == 2 * 32 * 16 * 16
    assert flops(jaxpr) == 2 * 2 * 32 * 16 * 16


def test_a_shard_map_counts_for_all_its_shards():
    mesh = jax.sharding.AbstractMesh((4, 2), ("data", "tensor"))

    def program(x, w):
        specs = {"in_specs": (P("data"), P(None, "tensor")), "out_specs": P("data", "tensor")}
        return jax.shard_map(jnp.dot, mesh=mesh, **specs)(x, w)

    shapes = (jax.ShapeDtypeStruct((32, 16), np.float32), jax.ShapeDtypeStruct((16, 64), np.float32))
    assert flops(jax.make_jaxpr(program)(*shapes).jaxpr) == 2 * 32 * 16 * 64
