"""Statistics and turns, on a clock that the test turns."""

import pytest

from mgie_jax.bench.clock import Spread, in_turn, lap_of, ratio, runs_a_lap


class Clock:
    """Runs that take as long as they are told, and the time that has passed."""

    def __init__(self):
        self.time, self.calls = 0.0, []

    def now(self):
        return self.time

    def run(self, name, *seconds):
        """A function that takes each of these times in turn, then the last one always."""
        left = list(seconds)

        def run():
            self.calls.append(name)
            self.time += left.pop(0) if len(left) > 1 else left[0]

        return lap_of(run, self.now)


def test_a_spread_is_median_and_quartiles():
    assert Spread.of([4.0, 1.0, 2.0, 3.0, 100.0]) == Spread(median=3.0, low=2.0, high=4.0)


def test_a_lap_is_the_time_of_all_its_runs():
    clock = Clock()
    assert clock.run("a", 2.0)(3) == 6.0 and clock.calls == ["a"] * 3


@pytest.mark.parametrize("seconds, runs", [(1.0, 1), (0.05, 1), (0.02, 3), (1e-6, 200)])
def test_what_is_quick_runs_several_times_a_lap(seconds, runs):
    assert runs_a_lap(Clock().run("a", 10.0, seconds), lap_s=0.05) == runs  # the first run compiles


def test_contestants_take_turns_after_all_are_warm():
    clock, told = Clock(), []
    laps = {"a": clock.run("a", 9.0, 1.0), "b": clock.run("b", 9.0, 2.0)}
    seconds = in_turn(laps, 3, lambda done, name: told.append((done, name)))
    assert seconds == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert clock.calls == ["a", "a", "b", "b"] + ["a", "b"] * 3
    assert told[:2] == [(0, "a, warming up"), (0, "b, warming up")] and told[-1] == (6, "")
    assert [name for _, name in told[2:-1]] == ["a", "b"] * 3


def test_times_are_of_one_run():
    assert in_turn({"a": Clock().run("a", 0.01)}, 2)["a"] == pytest.approx([0.01] * 2)


def test_a_ratio_is_taken_round_by_round():
    """A machine that is slower in every round leaves it alone; a ratio of medians would not be 0.5."""
    assert ratio([1.0, 10.0, 100.0], [2.0, 20.0, 200.0]) == Spread(0.5, 0.5, 0.5)
    assert ratio([1.0, 3.0, 2.0], [2.0, 3.0, 1.0]).median == 1.0


def test_bad_rounds_are_refused():
    with pytest.raises(ValueError, match="0 rounds"):
        in_turn({}, 0)
    with pytest.raises(ValueError):
        ratio([1.0], [1.0, 2.0])
