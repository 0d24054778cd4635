"""What the training loop adds to the jitted step: batches, metrics, checks and the log.

    python benchmarks/loop_overhead.py --config configs/default.py:64 --config.photos=DIR --config.init=MODEL \\
        [--rounds 3] [--updates 20]

Rounds of updates by `train.loop.fit` and of the same step bare, on one batch, in turn, in one process. Prints the
medians in seconds and their ratio, and the ratio in CPU seconds of this process, which other programs disturb less.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import jax

from mgie_jax.cli.train import read_config
from mgie_jax.compilation import enable_compilation_cache
from mgie_jax.train import loop, tasks

TO_DEVICE = 2  # batches that data.pipeline.to_device holds


class Done(Exception):
    """All has been measured."""


def train_with(measured: Callable, description: str) -> None:
    """Trains as the command line says, with `measured(step, config, arguments)` in the place of the step."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/default.py:64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=20)
    arguments, more = parser.parse_known_args()
    config = read_config(arguments.config, more)
    config.steps, config.checkpoint_every = 10**6, 10**6
    enable_compilation_cache()
    make_step = loop.make_step
    loop.make_step = lambda *args, **more: measured(make_step(*args, **more), config, arguments)
    with tempfile.TemporaryDirectory() as workdir, suppress(Done):
        tasks.train(config, Path(workdir))


class Clock:
    """Seconds, and CPU seconds of this process, since it was made."""

    def __init__(self):
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def __call__(self, share: int) -> tuple[float, float]:
        return (time.perf_counter() - self._wall) / share, (time.process_time() - self._cpu) / share


def loop_and_bare(step: Callable, config, arguments) -> Callable:
    """A step that measures the loop around it, and itself."""
    rounds, updates, ahead = arguments.rounds, arguments.updates, config.prefetch + TO_DEVICE
    seconds = {"loop": [], "bare": []}
    calls, clock = 0, None

    def measured(state, frozen, batch, key):
        nonlocal calls, clock
        at = calls % (ahead + updates)
        if calls and at == 0:
            jax.block_until_ready(state)
            seconds["loop"].append(clock(updates))
            clock = Clock()
            for _ in range(updates):
                state, _ = step(state, frozen, batch, key)
            jax.block_until_ready(state)
            seconds["bare"].append(clock(updates))
            if len(seconds["bare"]) > rounds:
                report({name: laps[1:] for name, laps in seconds.items()})  # the first round compiles the log's part
                raise Done
        # The batches that were made meanwhile are used up before the loop is timed again.
        if at == ahead:
            jax.block_until_ready(state)
            clock = Clock()
        calls += 1
        return step(state, frozen, batch, key)

    return measured


def report(seconds: dict[str, list[tuple[float, float]]]) -> None:
    wall, cpu = ({name: statistics.median(lap[i] for lap in laps) for name, laps in seconds.items()} for i in (0, 1))
    print("\nseconds a step, loop and bare, by round:", [
        (round(a[0], 3), round(b[0], 3)) for a, b in zip(seconds["loop"], seconds["bare"], strict=True)
    ])  # fmt: skip
    print(f"median: loop {wall['loop']:.3f}, bare {wall['bare']:.3f}, ratio {wall['loop'] / wall['bare']:.3f}")
    print(f"CPU:    loop {cpu['loop']:.3f}, bare {cpu['bare']:.3f}, ratio {cpu['loop'] / cpu['bare']:.3f}")


if __name__ == "__main__":
    train_with(loop_and_bare, __doc__)
