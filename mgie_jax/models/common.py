"""What two or more networks share: attention, its cache, and what a backward pass recomputes."""

import jax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

REMAT_POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def dot_product_attention(
    q: Float[Array, "b q heads head_dim"],
    k: Float[Array, "b k kv_heads head_dim"],
    v: Float[Array, "b k kv_heads head_dim"],
    mask: Bool[Array, "#b #heads #q #k"] | None = None,
    bias: Float[Array, "#b #heads #q #k"] | None = None,
    scale: float | None = None,
) -> Float[Array, "b q heads head_dim"]:
    """softmax(scale * q k^T + bias) v, with logits and softmax in float32 whatever the input dtype.

    `mask` is True where a query may look; a query that may look nowhere gets a finite average, never NaN.
    `kv_heads` may be any divisor of `heads` (grouped-query attention). `scale` defaults to head_dim ** -0.5.
    """
    return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, scale=scale, implementation="xla")


Stack = tuple[
    Float[Array, "layers b slots kv_heads head_dim"], Float[Array, "layers b slots kv_heads head_dim"]
]


def append_to_stack(
    stack: Stack,
    k: Float[Array, "b l kv_heads head_dim"],
    v: Float[Array, "b l kv_heads head_dim"],
    layer: Int[Array, ""],
    index: Int[Array, ""],
) -> tuple[Stack, Float[Array, "b slots kv_heads head_dim"], Float[Array, "b slots kv_heads head_dim"]]:
    """Write one layer's new keys and values at `index`; returns the stack and that layer's whole keys and
    values.

    The stack of all layers is meant to ride in the carry of the scan over layers: an update in place then
    costs only the new tokens, where caches scanned layer by layer would all be copied at every decoding step.
    """
    start = (layer, 0, index, 0, 0)
    keys = jax.lax.dynamic_update_slice(stack[0], k[None].astype(stack[0].dtype), start)
    values = jax.lax.dynamic_update_slice(stack[1], v[None].astype(stack[1].dtype), start)
    return (keys, values), keys[layer].astype(k.dtype), values[layer].astype(v.dtype)


def remat(module: type[nn.Module], policy: str) -> type[nn.Module]:
    """`module` with its activations recomputed in the backward pass.

    `policy` is "none" (keep everything), "dots" (keep the outputs of weight matmuls) or "full" (keep only the
    module's inputs). Raises ValueError for any other name. Meant for the body of a scan, hence no CSE
    barrier.
    """
    if policy == "none":
        return module
    if policy not in REMAT_POLICIES:
        raise ValueError(f"remat policy {policy!r} is not one of {['none', *REMAT_POLICIES]}")
    return nn.remat(module, policy=REMAT_POLICIES[policy], prevent_cse=False)
