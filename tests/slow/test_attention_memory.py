"""What the TPU compiler makes of the UNet's attention at 64x64 latents; no TPU is needed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("task, kernels, rest", [("edit", 1, 0.05), ("train", 4, 0.15)])
def test_the_kernel_leaves_few_temporaries(tpu_environment, task, kernels, rest):
    """Of training, two kernels forward, before and again in the backward pass, and two backward."""
    environment = tpu_environment | {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    command = [sys.executable, "-m", "tests.slow.compile_attention", task]
    told = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, check=True)
    found = json.loads(told.stdout.splitlines()[-1])
    assert found["kernel"]["kernels"] == kernels and found["plain"]["kernels"] == 0
    assert found["plain"]["temporaries"] > 2**30
    assert found["kernel"]["temporaries"] < rest * found["plain"]["temporaries"]
