"""What the parity tests share: a torch module's weights in ours, and how far two arrays are apart."""

import jax
import jax.numpy as jnp
import numpy as np

from mgie_jax.weights.rules import from_torch


def carry(template: dict, state_dict: dict) -> dict:
    """`template`'s tree with `state_dict`'s values. Raises on keys missing, left over or of another shape."""
    tensors = {key: np.asarray(value) for key, value in state_dict.items()}
    return jax.tree.map(jnp.asarray, from_torch(template, tensors, "the reference"))


def relative_error(ours, theirs) -> float:
    """max |ours - theirs| / max |theirs|."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
