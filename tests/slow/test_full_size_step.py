"""What the TPU compiler makes of the joint step of mgie_7b for sixteen chips; no TPU is needed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from flax.traverse_util import flatten_dict

from mgie_jax.models import presets
from mgie_jax.models.mgie import MGIE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["1,16,1", "2,4,2"])
def step(request, tpu_environment):
    """What `mgie plan` tells of the step on a mesh."""
    told = subprocess.run(
        [sys.executable, "-m", "mgie_jax.cli", "plan", "--config", "configs/mgie_7b.py", "--topology", "v5e:4x4",
         "--mesh", request.param, "--batch", "16", "--no-advice", "--json"],
        env=tpu_environment, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE,
    )  # fmt: skip
    (program,) = json.loads(told.stdout)["programs"]
    return program | {"exit_code": told.returncode}


def is_of_stack(shape: list[int], stack: tuple[int, ...]) -> bool:
    """Whether an array may be a stack of all layers' weights, or a shard of it that has every layer."""
    whole = len(shape) == len(stack) and shape[0] == stack[0]
    return whole and all(size % part == 0 for size, part in zip(stack, shape, strict=True))


def test_frozen_layers_are_gathered_one_at_a_time(step):
    shapes = flatten_dict(MGIE(presets.mgie_7b()).shapes(), sep="/")
    stacks = {x.shape for path, x in shapes.items() if "/layers/" in path and x.ndim == 3}
    assert {(32, 4096, 11008), (24, 1024, 4096)} <= stacks
    gathers = [exchange for exchange in step["exchanges"] if exchange["kind"] == "all-gather"]
    assert [one for one in gathers if any(is_of_stack(one["shape"], stack) for stack in stacks)] == []
    assert any(one["count"] >= 32 for one in gathers)  # in the loop over the layers


def test_the_new_state_takes_the_old_ones_memory(step):
    state = sum(size for part, size in step["parts"].items() if part.startswith("state/"))
    # Padding that only one of both has is all they may differ by.
    assert step["memory"]["aliased"] >= 0.999 * state > 0.5e9


def test_it_fits_the_chips(step):
    assert step["exit_code"] == 0 and step["total_bytes"] < 16 * 2**30
