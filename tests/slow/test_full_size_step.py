"""What the TPU compiler makes of the joint step of mgie_7b for sixteen chips; no TPU is needed."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def libtpu(tmp_path_factory):
    """A folder with the TPU compiler; apart, because where libtpu is installed every `import jax` looks for a TPU."""
    wanted = next(name for name in importlib.metadata.requires("jax") if name.startswith("libtpu"))
    folder = tmp_path_factory.mktemp("libtpu")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, wanted.split(";")[0]]
    if subprocess.run(pip).returncode:
        pytest.skip("libtpu, the TPU compiler, cannot be installed here")
    return folder


@pytest.fixture(scope="module", params=["1,16,1", "2,4,2"])
def compiled(request, libtpu):
    """What compile_full_size.py tells of a mesh."""
    paths = os.pathsep.join([str(libtpu), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "tests.slow.compile_full_size", "v5e:4x4", request.param]
    told = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, check=True)
    return json.loads(told.stdout.splitlines()[-1])


def is_of_stack(shape: list[int], stack: list[int]) -> bool:
    """Whether an array may be a stack of all layers' weights, or a shard of it that has every layer."""
    whole = len(shape) == len(stack) and shape[0] == stack[0]
    return whole and all(size % part == 0 for size, part in zip(stack, shape, strict=True))


def test_frozen_layers_are_gathered_one_at_a_time(compiled):
    stacks = [stack for stack in compiled["stacked"] if len(stack) == 3]
    assert [32, 4096, 11008] in stacks and [24, 1024, 4096] in stacks
    at_once = [gather for gather in compiled["gathers"] if any(is_of_stack(gather[1], stack) for stack in stacks)]
    assert at_once == []
    assert any(where == "in a loop" for _, _, where in compiled["gathers"])


def test_the_new_state_takes_the_old_ones_memory(compiled):
    assert compiled["aliased"] >= compiled["state"] > 0.5e9


def test_it_fits_the_chips(compiled):
    assert compiled["arguments"] + compiled["temporaries"] < 16 * 2**30
