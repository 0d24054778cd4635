"""The whitened start of the edit head: small differences of its input count as much as large ones."""

import numpy as np
import pytest

from mgie_jax.train.whiten import whiten_llm2hid


@pytest.fixture
def inputs():
    """Positions far apart, and within each a faint +-1 along one axis that is what an instruction says."""
    rng = np.random.default_rng(0)
    positions = rng.normal(0, 5, (1, 8, 12))
    said = rng.choice([-1.0, 1.0], (400, 1, 1)) * np.eye(12)[3] * 0.3
    return (positions + said + rng.normal(0, 0.02, (400, 8, 12))).astype(np.float32)


@pytest.fixture
def llm2hid():
    rng = np.random.default_rng(1)
    return {"kernel": rng.normal(0, 0.3, (12, 8)).astype(np.float32), "bias": rng.normal(0, 1, 8).astype(np.float32)}


def outputs(llm2hid, inputs):
    return inputs.reshape(-1, 12) @ np.asarray(llm2hid["kernel"]) + np.asarray(llm2hid["bias"])


def test_every_direction_is_within_the_bounds(llm2hid, inputs):
    before, after = (np.linalg.svd(np.cov(outputs(p, inputs).T))[1] ** 0.5 for p in (
        llm2hid, whiten_llm2hid(llm2hid, inputs, floor=1.5, ceiling=4.0, shrink=1e-6)
    ))  # fmt: skip
    assert before.max() > 6 and before.min() < 0.2
    np.testing.assert_allclose((after.min(), after.max()), (1.5, 4.0), rtol=1e-3)


def test_the_mean_output_stays(llm2hid, inputs):
    means = [outputs(p, inputs).mean(0) for p in (llm2hid, whiten_llm2hid(llm2hid, inputs))]
    np.testing.assert_allclose(*means, atol=1e-4)


def test_directions_wide_enough_are_left_alone(llm2hid, inputs):
    same = whiten_llm2hid(llm2hid, inputs, floor=0.0, ceiling=np.inf)
    np.testing.assert_allclose(same["kernel"], llm2hid["kernel"], atol=1e-4)
