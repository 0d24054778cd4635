"""Carry a torch state dict into a linen parameter tree by the naming rule alone."""

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

RENAMED = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
STACKED = ("layers", "block")


def carry(template: dict, state_dict: dict) -> dict:
    """`template`'s tree with `state_dict`'s values. Raises on keys missing, left over or of another shape."""
    left = {key: np.asarray(value) for key, value in state_dict.items()}
    params = {}
    for path, leaf in flatten_dict(template).items():
        *scope, name = path
        stack = next((i for i, part in enumerate(scope) if part in STACKED), None)

        def value(layer=None, scope=scope, name=name, stack=stack):
            parts = list(scope) if layer is None else [*scope[: stack + 1], str(layer), *scope[stack + 1 :]]
            found = left.pop(".".join([*parts, RENAMED.get(name, name)]))
            if name == "kernel":
                found = found.transpose(2, 3, 1, 0) if found.ndim == 4 else found.T
            return found

        new = value() if stack is None else np.stack([value(i) for i in range(leaf.shape[0])])
        if new.shape != leaf.shape:
            raise ValueError(f"{'.'.join(path)}: {new.shape} for {leaf.shape}")
        params[path] = jnp.asarray(new)
    if left:
        raise ValueError(f"left over: {sorted(left)}")
    return unflatten_dict(params)


def relative_error(ours, theirs) -> float:
    """max |ours - theirs| / max |theirs|."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
