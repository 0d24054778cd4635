"""What the parity tests share: a torch module's weights in ours, and how far arrays and gradients are apart."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import torch

from mgie_jax.weights.rules import from_torch, to_torch


def carry(template: dict, state_dict: Mapping) -> dict:
    """`template`'s tree with `state_dict`'s values. Raises on keys missing, left over or of another shape."""
    tensors = {key: np.asarray(value) for key, value in state_dict.items()}
    return jax.tree.map(jnp.asarray, from_torch(template, tensors, "the reference"))


def stir(module: torch.nn.Module, scale: float = 0.05) -> None:
    """Noise on every parameter: unit norms and zero biases would hide mistakes."""
    with torch.no_grad():
        for value in module.parameters():
            value.add_(scale * torch.randn_like(value))


def tensor(x, grad: bool = False) -> torch.Tensor:
    """A copy for torch; of photos and latents it is NCHW."""
    x = np.array(x)
    return torch.tensor(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x, requires_grad=grad)


def array(x: torch.Tensor) -> np.ndarray:
    """`tensor`'s inverse."""
    x = x.detach().numpy()
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def relative_error(ours, theirs) -> float:
    """max |ours - theirs| / max |theirs|."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def relative_l2(ours, theirs) -> float:
    """|ours - theirs| / |theirs| over the whole output. The norm for bfloat16: rounding spreads, and one value in
    thousands that is off by three roundings says nothing about the network."""
    ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def gradient_error(grads: dict, theirs: torch.nn.Module, rename: Callable[[str], str] = str) -> float:
    """The largest `relative_error` of any parameter's gradient, after `backward` on the reference.

    `rename` makes our network's key of a name in `theirs`. Gradients far below the network's largest are measured
    against a thousandth of that: some, as a key's bias in attention, are zero but for rounding.
    """
    ours = to_torch(grads)
    wanted = {
        rename(name): np.zeros(value.shape, np.float32) if value.grad is None else value.grad.numpy()
        for name, value in theirs.named_parameters()
    }
    assert ours.keys() == wanted.keys(), ours.keys() ^ wanted.keys()
    floor = 1e-3 * max(np.abs(x).max() for x in wanted.values())
    return max(float(np.abs(ours[key] - x).max() / max(np.abs(x).max(), floor)) for key, x in wanted.items())
