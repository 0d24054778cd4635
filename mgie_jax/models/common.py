"""What two or more networks share: the cache of attention, layers stacked or apart, what a backward pass recomputes."""

from typing import Any

import jax
import numpy as np
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
    layer: int | Int[Array, ""],
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


def unscan_layers(params: dict) -> dict:
    """The parameters of a network with `scan_layers` as the same network takes them without.

    Wherever a dict of the tree has the entry `layers`, whose leaves lead with a layer axis, the new one has `layers_0`,
    `layers_1`... in its place. `params` is used up: each stack leaves its dict before the next one is cut, so that,
    unless the caller holds it by another name too, no more than one of them is in memory twice. JAX arrays are cut on
    the host and lie on JAX's default device afterwards.
    """
    made: dict[str, Any] = {}
    for name in list(params):
        value = params.pop(name)
        if name == "layers":
            made |= {f"layers_{i}": layer for i, layer in enumerate(_cut(value))}
        else:
            made[name] = unscan_layers(value) if isinstance(value, dict) else value
    return made


def _cut(stack: Any) -> list:
    """Trees of each layer's own arrays. Leaves of the dicts may be pytrees themselves, as quantized arrays are."""
    if not isinstance(stack, dict):
        leaves, tree = jax.tree.flatten(stack)
        return [tree.unflatten(layer) for layer in zip(*map(_layers, leaves), strict=True)]
    parts = {name: _cut(stack.pop(name)) for name in list(stack)}
    return [dict(zip(parts, layer, strict=True)) for layer in zip(*parts.values(), strict=True)]


def _layers(leaf: jax.Array | np.ndarray) -> list[jax.Array] | list[np.ndarray]:
    # Through NumPy: JAX would compile a program to slice each shape.
    return [jax.device_put(layer) for layer in np.asarray(leaf)] if isinstance(leaf, jax.Array) else list(leaf)


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
