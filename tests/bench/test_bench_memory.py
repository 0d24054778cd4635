"""Memory that a run takes for a moment counts as its own; what was taken before does not."""

from pathlib import Path

import numpy as np
import pytest

from mgie_jax.bench.memory import resident

BIG = 2**27


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells")
def test_the_peak_of_a_run_is_its_own():
    np.ones(2 * BIG, np.uint8)
    idle = resident(lambda: None)
    busy = resident(lambda: np.ones(BIG, np.uint8).sum())
    assert idle["peak"] >= idle["running"] + BIG
    assert idle["running"] + 0.9 * BIG < busy["running"] < idle["running"] + 1.5 * BIG
    assert busy["peak"] >= busy["running"]
