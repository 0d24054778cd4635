"""What training carries from step to step, and the split into trainable and frozen trees."""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree


@struct.dataclass
class TrainState:
    """Everything that changes during training; frozen weights are not part of it.

    `step` counts the updates done (int32). The fields are trees of anything, because checkpointing puts shapes,
    and more, where the arrays go.
    """

    step: PyTree
    params: PyTree
    opt_state: PyTree
    ema: PyTree | None


def split_params(params: dict, trainable: Sequence[str]) -> tuple[dict, dict]:
    """Parts a nested dict of parameters into (trainable, frozen) trees.

    Args:
        params: nested dict of arrays.
        trainable: regular expressions, matched from the start of "a/b/c" paths.

    Raises:
        ValueError: a pattern matches no parameter.
    """
    flat = flatten_dict(params, sep="/")
    for pattern in trainable:
        if not any(re.match(pattern, path) for path in flat):
            raise ValueError(f"trainable pattern {pattern!r} matches no parameter; top-level names: {sorted(params)}")
    chosen = {path for path in flat if any(re.match(pattern, path) for pattern in trainable)}
    return (
        unflatten_dict({path: x for path, x in flat.items() if path in chosen}, sep="/"),
        unflatten_dict({path: x for path, x in flat.items() if path not in chosen}, sep="/"),
    )


def merge_params(a: dict, b: dict) -> dict:
    """The one tree of which `split_params` made two."""
    return unflatten_dict({**flatten_dict(a), **flatten_dict(b)})


def init_state(params: dict, optimizer: optax.GradientTransformation, ema: bool) -> TrainState:
    """A state at step 0 over the trainable tree."""
    average = jax.tree.map(jnp.copy, params) if ema else None  # a copy: both trees are donated to the step
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)
