"""What an asynchronous save adds to the training steps during which it runs.

    python benchmarks/async_save.py --config configs/default.py:64 --config.photos=DIR --config.init=MODEL \\
        [--rounds 3] [--updates 6]

In turn, in one process: some steps, then a save and as many steps as it takes to finish. Prints the medians and what
the save adds: to those steps, in seconds altogether (of which some before it returned), and to a run at large.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
from loop_overhead import Done, train_with

from mgie_jax.train import checkpoint


def with_saves(step: Callable, config, arguments) -> Callable:
    """A step that measures itself and saves, all at its first call."""
    every = 250  # updates between checkpoints, as configs/default.py has it

    def measured(state, frozen, batch, key):
        def update():
            nonlocal state
            state, _ = step(state, frozen, batch, key)
            jax.block_until_ready(state)

        update()
        rows = []
        with (
            tempfile.TemporaryDirectory() as folder,
            checkpoint.Checkpoints(Path(folder), config) as checkpoints,
        ):
            for number in range(1, arguments.rounds + 1):
                begun = time.perf_counter()
                for _ in range(arguments.updates):
                    update()
                alone = (time.perf_counter() - begun) / arguments.updates
                begun, steps = time.perf_counter(), 0
                checkpoints.save(number, state)
                blocked = time.perf_counter() - begun
                while number not in checkpoint.steps(folder):
                    update()
                    steps += 1
                added = time.perf_counter() - begun - steps * alone
                rows.append((alone, steps, blocked, added, added / (steps * alone)))
        print("\nstep alone (s), steps during the save, blocked (s), added (s), added (share):")
        for row in rows:
            print("  ".join(f"{value:8.3f}" for value in row))
        alone, _, _, added, share = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"median: a save adds {share:.1%} to the steps during which it runs, {added / (every * alone):.2%} "
              f"to a run that saves every {every} steps")  # fmt: skip
        raise Done

    return measured


if __name__ == "__main__":
    train_with(with_saves, __doc__)
