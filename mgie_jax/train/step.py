"""The training step: one XLA program from (state, frozen, batch, key) to (state, metrics)."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec, use_abstract_mesh
from jaxtyping import Array, Key, PyTree, Shaped

from mgie_jax.sharding import BATCH, constrain
from mgie_jax.train.optimizer import choose
from mgie_jax.train.state import TrainState

Loss = Callable[[PyTree, PyTree, PyTree, Array], tuple[Array, dict[str, Array]]]
"""`loss(trainable, frozen, batch, key) -> (scalar, metrics)`, of a whole batch"""


@dataclass(frozen=True)
class SplitLoss:
    """A loss that can be had in parts: over any rows of a batch, such that the parts add up to the whole.

    Attributes:
        draw: `(key, batch) -> draws`, all that is random, for the whole batch; an example's rows lead as its own do.
        count: `batch -> counts`, what the means of the loss divide by: of the whole batch, whatever part is asked for.
        value: `(trainable, frozen, rows, draws of these rows, counts) -> (scalar, metrics)`, sums over the rows divided
            by the counts.
    """

    draw: Callable[[Array, PyTree], PyTree]
    count: Callable[[PyTree], PyTree]
    value: Callable[[PyTree, PyTree, PyTree, PyTree, PyTree], tuple[Array, dict[str, Array]]]

    def __call__(self, trainable: PyTree, frozen: PyTree, batch: PyTree, key: Key[Array, ""]) -> tuple[Array, dict]:
        """The loss of a whole batch at once."""
        return self.value(trainable, frozen, batch, self.draw(key, batch), self.count(batch))


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformationExtraArgs,
    ema_decay: float,
    *,
    accumulate: int = 1,
    shardings: PyTree | None = None,
) -> Callable:
    """The jitted `step(state, frozen, batch, key) -> (state, metrics)`; the state is donated, its buffers reused.

    The step's key is `key` with the number of updates done folded in. A step whose loss or gradient is not finite
    counts, but changes neither parameters nor averages nor optimizer.

    Metrics are the loss's own, "grad_norm" before any clipping, "grad_norm/NAME" of each top-level tree, and "finite".

    Args:
        optimizer: one that can be held (`optimizer.hold`).
        accumulate: in how many parts, one after the other, the gradient of a batch is computed; all that changes is
            the memory it takes. The parts must divide the batch, and `loss` must be a `SplitLoss`.
        shardings: where the state lies, a `TrainState` of NamedShardings (`sharding.state_shardings`) on one mesh, as
            the batch's rows lie on it; None on one device.

    Raises:
        ValueError: `accumulate` is above 1 and the loss does not split or, when the step runs, the batch does not.
    """
    if accumulate > 1 and not isinstance(loss, SplitLoss):
        raise ValueError(f"accumulate={accumulate}: this loss comes only whole; set accumulate to 1")
    mesh = None if shardings is None else jax.tree.leaves(shardings)[0].mesh

    def gradients(params: PyTree, frozen: PyTree, batch: PyTree, key: Array) -> tuple[tuple[Array, dict], PyTree]:
        if accumulate == 1:
            return jax.value_and_grad(loss, has_aux=True)(params, frozen, batch, key)
        leaves, structure = jax.tree.flatten((batch, loss.draw(key, batch)))
        examples, counts = leaves[0].shape[0], loss.count(batch)
        if examples % accumulate:
            raise ValueError(f"a batch of {examples} cannot be accumulated in {accumulate} equal parts")
        parts = [_parts(x, examples, accumulate) for x in leaves]

        def graded(part: list[Array]) -> tuple[tuple[Array, dict], PyTree]:
            rows, draws = structure.unflatten(part)
            return jax.value_and_grad(loss.value, has_aux=True)(params, frozen, rows, draws, counts)

        def add(total: PyTree, part: list[Array]) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, graded(part)), None

        shapes = jax.eval_shape(graded, [x[0] for x in parts])
        return jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), parts)[0]

    def step(state: TrainState, frozen: PyTree, batch: PyTree, key: Key[Array, ""]) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(key, state.step)
        with nullcontext() if mesh is None else use_abstract_mesh(mesh.abstract_mesh):
            (value, metrics), grads = gradients(state.params, frozen, batch, key)
        norms = {f"grad_norm/{name}": optax.tree.norm(tree) for name, tree in grads.items()}
        norm = jnp.sqrt(sum(jnp.square(part) for part in norms.values()))
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, finite=finite)
        params = choose(finite, optax.apply_updates(state.params, updates), state.params)
        ema = None
        if state.ema is not None:
            # A young average forgets its random start: decay rises from 0.1 to `ema_decay`.
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = choose(finite, optax.incremental_update(params, state.ema, 1.0 - decay), state.ema)
        new = TrainState(state.step + 1, params, opt_state, ema)
        return new, {**metrics, "grad_norm": norm, **norms, "finite": finite}

    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())))


def _parts(x: Shaped[Array, "..."], examples: int, parts: int) -> Shaped[Array, "..."]:
    """The rows of `x` in equal parts: part j has the examples j, j + parts, j + 2 * parts...

    Taken so, and not one behind the other, the rows of a part lie on every device that has rows of the batch.
    """
    rows = x.shape[0] // examples  # the draws may have several rows an example
    by_example = x.reshape(examples // parts, parts, rows, *x.shape[1:])
    apart = jnp.moveaxis(by_example, 1, 0).reshape(parts, -1, *x.shape[1:])
    return constrain(apart, PartitionSpec(None, *BATCH))
