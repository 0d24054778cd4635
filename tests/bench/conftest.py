"""One case for all tests of stages: the smallest model with random weights, on photos of 32 x 32 pixels."""

import jax.numpy as jnp
import pytest


@pytest.fixture(scope="session")
def bench_source():
    from mgie_jax.bench.inputs import source
    from mgie_jax.train.config import default_config

    config = default_config()
    config.model = "test"
    return source(config)


@pytest.fixture(scope="session")
def bench_case(bench_source):
    from mgie_jax.bench.case import make_case

    return make_case(bench_source, bench_source.tokenizer(), jnp.float32, None, rows=2)
