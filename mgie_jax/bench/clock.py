"""Timing side by side: contestants take turns, so that whatever else the machine does disturbs all of them alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LAP_S = 0.05  # seconds that a lap takes at least: what is quicker runs several times in a lap
MOST_RUNS = 200  # of one lap


@dataclass(frozen=True)
class Spread:
    """The middle of some numbers: median, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        low, median, high = np.quantile(np.asarray(values, np.float64), (0.25, 0.5, 0.75))
        return cls(float(median), float(low), float(high))


Lap = Callable[[int], float]
"""`lap(runs)`: runs something that often and returns the seconds that all of it took."""


def lap_of(run: Callable[[], object], now: Callable[[], float] = time.perf_counter) -> Lap:
    """The lap of a function that returns when its work is done."""

    def lap(runs: int) -> float:
        begun = now()
        for _ in range(runs):
            run()
        return now() - begun

    return lap


def runs_a_lap(lap: Lap, lap_s: float = LAP_S) -> int:
    """How often something runs in a lap of `lap_s` seconds, found by running it twice: the first time is a warm-up."""
    lap(1)
    return int(min(max(1, np.ceil(lap_s / max(lap(1), 1e-9))), MOST_RUNS))


def in_turn(
    laps: Mapping[str, Lap], rounds: int, progress: Callable[[int, str], None] = lambda done, name: None
) -> dict[str, list[float]]:
    """Seconds of one run of each contestant in each round; in a round each has one lap, in the order given.

    Args:
        laps: contestants; each is warmed up first, before any is timed.
        progress: told how many laps are over, and whose turn it is.

    Raises:
        ValueError: less than one round.
    """
    if rounds < 1:
        raise ValueError(f"{rounds} rounds: at least 1 is needed")
    runs, done = {}, 0
    for name, lap in laps.items():
        progress(done, f"{name}, warming up")
        runs[name] = runs_a_lap(lap)
    seconds: dict[str, list[float]] = {name: [] for name in laps}
    for _ in range(rounds):
        for name, lap in laps.items():
            progress(done, name)
            seconds[name].append(lap(runs[name]) / runs[name])
            done += 1
    progress(done, "")
    return seconds


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours over theirs, round by round: what slowed down a whole round has no part in it.

    Raises:
        ValueError: they are not of the same rounds.
    """
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])
