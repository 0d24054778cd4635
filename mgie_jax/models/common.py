"""What two or more networks share: attention, its cache, and what a backward pass recomputes."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int


def _is_weight_product(primitive, *args, **params) -> bool:
    """Whether an equation is a matmul with weights or a convolution; attention's matmuls have batch dimensions."""
    dot = jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *args, **params)
    return primitive is jax.lax.conv_general_dilated_p or dot


REMAT_POLICIES = {"blocks": None, "dots": _is_weight_product}

BLOCKED_FROM = 128 * 128  # logits; below, a loop over matrices costs more than it saves


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
    heads = q.shape[2]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    k, v = (jnp.repeat(x, heads // x.shape[1], axis=1) for x in (k, v))
    if mask is None and bias is None and q.shape[2] * k.shape[2] >= BLOCKED_FROM:
        y = jax.lax.platform_dependent(
            q, k, v, cpu=lambda *x: _attend_blocked(*x, scale), default=lambda *x: _attend(*x, scale)
        )
    else:
        y = _attend(q, k, v, scale, mask, bias)
    return jnp.swapaxes(y, 1, 2)


def _attend(
    q: Float[Array, "*b q d"], k: Float[Array, "*b k d"], v: Float[Array, "*b k d"], scale: float, mask=None, bias=None
) -> Float[Array, "*b q d"]:
    """Attention of plain batched matmuls, heads first; the division comes last, where it is smallest."""
    logits = jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=jnp.float32) * scale
    if bias is not None:
        logits += bias
    if mask is not None:
        logits = jnp.where(mask, logits, -1e30)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    y = jnp.einsum("...qk,...kd->...qd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (y / weights.sum(-1, keepdims=True)).astype(v.dtype)


def _attend_blocked(
    q: Float[Array, "b h q d"], k: Float[Array, "b h k d"], v: Float[Array, "b h k d"], scale: float
) -> Float[Array, "b h q d"]:
    """As `_attend`, one head of one row at a time, recomputed in the backward pass.

    A CPU's cache holds one attention matrix and not a batch of them: forward and backward over 256 tokens are
    about twice as fast as all at once, over 1024 tokens three times.
    """

    def one(_, qkv):
        return None, _attend(*qkv, scale)

    flat = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
    y = jax.lax.scan(jax.checkpoint(one, prevent_cse=False), None, tuple(flat))[1]
    return y.reshape(q.shape)


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


def remat(module: type[nn.Module], policy: str, scanned: bool = False) -> type[nn.Module]:
    """`module` with its activations recomputed in the backward pass.

    `policy` is "none" (keep everything), "dots" (keep the outputs of weight matmuls and convolutions) or "blocks" (keep
    only the module's inputs). The body of a scan, `scanned`, needs no barrier against common subexpressions.

    Raises:
      ValueError: another policy.
    """
    if policy == "none":
        return module
    if policy not in REMAT_POLICIES:
        raise ValueError(f"remat policy {policy!r} is not one of {['none', *REMAT_POLICIES]}")
    return nn.remat(module, policy=REMAT_POLICIES[policy], prevent_cse=not scanned)
