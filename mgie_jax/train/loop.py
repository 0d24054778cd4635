"""The only training loop there is: it feeds a task's batches to its step, reports, saves and resumes."""

import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grain
import jax
import ml_collections
import numpy as np
from jaxtyping import PyTree
from tensorboardX import SummaryWriter
from tqdm import tqdm

from mgie_jax.train.checkpoint import Checkpoints
from mgie_jax.train.state import TrainState, init_state, make_optimizer
from mgie_jax.train.step import Loss, make_step


@dataclass(frozen=True)
class Task:
    """What one kind of training needs.

    Attributes:
        params: trainable parameters, {top-level name: tree}.
        frozen: parameters the loss reads and nothing writes.
        loss: see `train.step.Loss`.
        batch: number of an update -> that update's batch (a pytree of NumPy arrays). A pure function, so that a
            resumed run sees the batches an uninterrupted one would.
    """

    params: PyTree
    frozen: PyTree
    loss: Loss
    batch: Callable[[int], PyTree]


def fit(task: Task, config: ml_collections.ConfigDict, workdir: Path) -> TrainState:
    """Trains to `config.steps`, resuming from the newest checkpoint under `workdir`.

    Writes `metrics.jsonl`, TensorBoard events and checkpoints there. An interrupt (SIGINT, SIGTERM) ends the run
    after the step in progress, with a checkpoint.

    Raises:
        FloatingPointError: the loss stopped being finite.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    optimizer = make_optimizer(config)
    # Copies, because the state is donated and the task's own arrays must outlive it.
    state = init_state(jax.tree.map(jax.numpy.array, task.params), optimizer, config.ema_decay > 0)
    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    if checkpoints.latest() is not None:
        state = checkpoints.restore(state)
    step = make_step(task.loss, optimizer, config.ema_decay)
    start = int(state.step)
    batches = iter(
        grain.MapDataset.range(start, config.steps)
        .map(task.batch)
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=config.prefetch))
    )
    with _Interrupts() as interrupts, _Log(workdir, start, config.steps) as log:
        for number in range(start, config.steps):
            state, metrics = step(state, task.frozen, next(batches), jax.random.key(config.seed))
            if (number + 1) % config.log_every == 0 or number + 1 == config.steps:
                log.write(number + 1, jax.device_get(metrics))
            if (number + 1) % config.checkpoint_every == 0 or interrupts.received:
                checkpoints.save(state)
            if interrupts.received:
                break
        checkpoints.save(state)
    checkpoints.close()
    return state


class _Log:
    """Progress bar, `metrics.jsonl` and TensorBoard, all showing the same figures."""

    def __init__(self, workdir: Path, start: int, steps: int):
        self._lines = open(workdir / "metrics.jsonl", "a")
        self._board = SummaryWriter(str(workdir / "tensorboard"))
        self._bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, file=sys.stderr)
        self._begun = (time.perf_counter(), start)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for closing in (self._bar, self._board, self._lines):
            closing.close()

    def write(self, step: int, metrics: dict) -> None:
        figures = {name: float(np.mean(value)) for name, value in metrics.items()}
        if not np.isfinite(figures["loss"]):
            raise FloatingPointError(f"the loss at step {step} is {figures['loss']}; lower the learning rate")
        now, (then, before) = time.perf_counter(), self._begun
        self._begun = (now, step)
        figures["steps_per_second"] = (step - before) / max(now - then, 1e-9)
        self._lines.write(json.dumps({"step": step, **figures}) + "\n")
        self._lines.flush()
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)
        shown = {name: f"{figures[name]:.4f}" for name in figures if name.startswith(("loss", "L_"))}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)


class _Interrupts:
    """Turns SIGINT and SIGTERM into a flag the loop reads between steps."""

    def __enter__(self):
        self.received = False
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, *_):
        self.received = True

    def __exit__(self, *exception):
        for s, handler in self._before.items():
            signal.signal(s, handler)
