"""The training step: one XLA program from (state, frozen, batch, key) to (state, metrics)."""

from collections.abc import Callable

import jax
import optax
from jaxtyping import Array, Key, PyTree

from mgie_jax.train.state import TrainState

Loss = Callable[[PyTree, PyTree, PyTree, Array], tuple[Array, dict[str, Array]]]
"""`loss(trainable, frozen, batch, key) -> (scalar, metrics)`"""


def make_step(loss: Loss, optimizer: optax.GradientTransformation, ema_decay: float) -> Callable:
    """The jitted step; the incoming state is donated, so its buffers are reused for the new one."""

    def step(state: TrainState, frozen: PyTree, batch: PyTree, key: Key[Array, ""]) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(key, state.step)
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params, frozen, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = None
        if state.ema is not None:
            # A young average forgets its random start: decay rises from 0.1 to `ema_decay`.
            decay = jax.numpy.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = optax.incremental_update(params, state.ema, 1.0 - decay)
        metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return jax.jit(step, donate_argnums=0)
