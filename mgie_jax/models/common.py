"""What two or more networks share: the cache of attention, and what a backward pass recomputes."""

import jax
from flax import linen as nn
from jaxtyping import Array, Float, Int


def _is_weight_product(primitive, *args, **params) -> bool:
    """Whether an equation is a matmul with weights or a convolution; attention's matmuls have batch dimensions."""
    dot = jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *args, **params)
    return primitive is jax.lax.conv_general_dilated_p or dot


REMAT_POLICIES = {"blocks": None, "dots": _is_weight_product}

Stack = tuple[Float[Array, "layers b slots kv_heads head_dim"], Float[Array, "layers b slots kv_heads head_dim"]]


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
