"""The only training loop there is: it feeds a task's batches to its step, reports, saves and resumes.

**Step** is the number of updates done; a batch has B = `config.batch_size` examples, counted over all hosts. Update
k = 0, 1, ... finds the run at step k, takes the **examples** k * B .. (k + 1) * B - 1 of the endless shuffled order and
the random key fold_in(key(seed), k), and leaves the run at step k + 1. Then, at step k + 1, in this order: metrics are
logged, a grid of edits is drawn, the state is saved, and the run stops if it was told to. So a checkpoint of step s has
seen the first s * B examples, and the run that resumes from it begins with update s, on example s * B. Nothing else is
remembered: any number of hosts, devices and workers sees the same examples in the same order. An example that cannot be
used has its place taken by another that follows from the seed and the place alone.

The host runs ahead of the devices by `AHEAD` updates, and waits for them only to log and to save.
"""

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from PIL import Image

from mgie_jax.data.pipeline import BatchFn, local_rows, stream, to_device
from mgie_jax.data.skips import Skips
from mgie_jax.paths import AnyPath, make_folder, to_path
from mgie_jax.sharding import param_shardings, state_shardings
from mgie_jax.train.checkpoint import Checkpoints
from mgie_jax.train.interrupts import Interrupts
from mgie_jax.train.log import Log
from mgie_jax.train.optimizer import make_optimizer, schedules, updates_applied
from mgie_jax.train.state import TrainState, init_state, merge_params
from mgie_jax.train.step import Loss, make_step
from mgie_jax.weights.atomic import write_text

AHEAD = 2


@dataclass(frozen=True)
class Task:
    """What one kind of training needs.

    Attributes:
        params: trainable parameters, {top-level name: tree}. Training takes their memory: where they are JAX's arrays,
            they are gone once it has begun.
        frozen: parameters the loss reads and nothing writes.
        loss: see `train.step.Loss`.
        batch: (number of an update, rows) -> those rows of its batch; see `data.pipeline.BatchFn`.
        grid: (step, all parameters) -> a picture of held-out edits, or None where there is nothing to show.
        flops_per_example: of a training step, for the log.
    """

    params: PyTree
    frozen: PyTree
    loss: Loss
    batch: BatchFn
    grid: Callable[[int, PyTree], Image.Image | None] | None = None
    flops_per_example: float | None = None


class NonFinite(FloatingPointError):
    """A loss or its gradient is not finite; the message names the file with the batch's ids."""


def fit(task: Task, config: ml_collections.ConfigDict, workdir: AnyPath, mesh: Mesh | None = None) -> TrainState:
    """Trains to `config.steps`, resuming from the newest checkpoint under `workdir`, and returns the last state.

    Writes checkpoints, the log (`train.log`), pictures and, if asked for, a profile there.

    Args:
        mesh: of all processes' devices; None for one device.

    Raises:
        KeyboardInterrupt: Ctrl-C. The state has been saved, as it has for
        Preempted: SIGTERM.
        NonFinite: a loss is not finite and `config.on_nonfinite` is "stop". Nothing after it has been saved.
        ValueError: the newest checkpoint is of another run, none is whole, or the data has too many unusable examples.
    """
    workdir = to_path(workdir)
    make_folder(workdir)
    optimizer, rates = make_optimizer(config), schedules(config)

    def init(params: PyTree) -> TrainState:
        return init_state(params, optimizer, config.ema_decay > 0)

    like = jax.eval_shape(init, task.params)
    shardings = None if mesh is None else state_shardings(like, mesh)
    frozen = jax.device_put(task.frozen, None if mesh is None else param_shardings(task.frozen, mesh))
    step = make_step(task.loss, optimizer, config.ema_decay, accumulate=config.accumulate, shardings=shardings)
    key = jax.random.key(config.seed)

    with Interrupts() as interrupts, Checkpoints(workdir, config) as checkpoints:
        if checkpoints.latest is None:
            state = jax.jit(init, donate_argnums=0, out_shardings=shardings)(_owned(task.params))
        else:
            _let_go(task.params)
            state = checkpoints.restore(like, shardings)
        _let_go(task.params)
        start = checkpoints.latest or 0
        read = stream(task.batch, start, config.steps, local_rows(config.batch_size, mesh), config.workers,
                      config.prefetch)  # fmt: skip
        with (
            Log(workdir, start, config.steps, config.batch_size, flops_per_example=task.flops_per_example,
                wandb=config.wandb) as log,
            closing(to_device(read, mesh)) as batches,
            _Trace(log.folder / "profile", config.profile) as trace,
        ):  # fmt: skip
            skips, finite = Skips(config.max_skipped), _FiniteCheck(workdir, config.on_nonfinite)
            for number in range(start, config.steps):
                trace.before(number - start, state)
                begun = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - begun
                state, metrics = step(state, frozen, batch.arrays, key)
                done, last = number + 1, number + 1 == config.steps
                log.update(metrics, waited, batch.skipped)
                skips.add(batch)
                finite.add(done, metrics, batch.ids)
                if last or done % config.log_every == 0:
                    # Of the last update that was made: one that is not finite leaves the schedules where they are.
                    made = max(0, int(updates_applied(state.opt_state)) - 1)
                    log.write(done, {name: float(rate(made)) for name, rate in rates.items()})
                if task.grid is not None and config.grid_every and done % config.grid_every == 0:
                    params = merge_params(state.params if state.ema is None else state.ema, frozen)
                    if (image := task.grid(done, params)) is not None:
                        log.picture("grid", done, image)
                stop = interrupts.reached(done)
                if last or stop or done % config.checkpoint_every == 0:
                    finite.check_all()
                    log.save()
                    checkpoints.save(done, state)
                if stop:
                    raise interrupts.error()
    return state


def _owned(params: PyTree) -> PyTree:
    """The parameters as arrays that may be given away: JAX's own as they are, copies of others."""
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else np.array(x), params)


def _let_go(params: PyTree) -> None:
    """Frees the devices' memory of what JAX holds of them, whoever still has a reference."""
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array) and not leaf.is_deleted():
            leaf.delete()


class _FiniteCheck:
    """Reads every update's `finite`, `AHEAD` updates later: by then it is known, or the host is far enough ahead."""

    def __init__(self, workdir: AnyPath, on_nonfinite: str):
        self._workdir, self._stop = workdir, on_nonfinite == "stop"
        self._pending: deque[tuple[int, dict, tuple[str, ...]]] = deque()

    def add(self, step: int, metrics: dict[str, jax.Array], ids: tuple[str, ...]) -> None:
        self._pending.append((step, metrics, ids))
        if len(self._pending) > AHEAD:
            self._check(*self._pending.popleft())

    def check_all(self) -> None:
        while self._pending:
            self._check(*self._pending.popleft())

    def _check(self, step: int, metrics: dict[str, jax.Array], ids: tuple[str, ...]) -> None:
        if metrics["finite"]:
            return
        # Each process knows the ids of its own rows.
        process = f"-process-{jax.process_index()}" if jax.process_index() else ""
        path = self._workdir / f"nonfinite-{step:06d}{process}.json"
        figures = {name: repr(float(value)) for name, value in jax.device_get(metrics).items()}
        write_text(path, json.dumps({"step": step, "ids": ids, "metrics": figures}, indent=1))
        if self._stop:
            raise NonFinite(
                f"the loss or its gradient is not finite at step {step}; the ids of its batch are in {path}; "
                "lower config.learning_rate, mend these examples, or pass over such batches (config.on_nonfinite=skip)"
            )
        print(f"\nmgie: step {step} is not finite and was skipped; the ids of its batch are in {path}", file=sys.stderr)


class _Trace:
    """A profile for xprof or TensorBoard, of the updates `first` .. `end` - 1 of this process."""

    def __init__(self, folder: AnyPath, window: Sequence[int]):
        self._folder, self._on = str(folder), False
        self._first, self._end = window or (None, None)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._on:
            jax.profiler.stop_trace()

    def before(self, update: int, state: TrainState) -> None:
        if update == (self._end if self._on else self._first):
            jax.block_until_ready(state)  # so that there are whole updates in it
            (jax.profiler.stop_trace if self._on else partial(jax.profiler.start_trace, self._folder))()
            self._on = not self._on
