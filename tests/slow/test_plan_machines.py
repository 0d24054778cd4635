"""`mgie plan` for every kind of machine, one slice and two: what their compilers write can be read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mgie_jax.plan.machines import MACHINES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("machine", MACHINES)
def test_every_machine(machine, slices, tpu_environment):
    shapes = MACHINES[machine].shapes
    shape = "x".join(map(str, shapes[min(1, len(shapes) - 1)]))
    told = subprocess.run(
        [sys.executable, "-m", "mgie_jax.cli", "plan", "--config", "configs/test.py", "--mode", "prepare", "--json",
         "--topology", f"{machine}:{shape}", "--slices", str(slices), "--mesh", f"data={slices},fsdp=-1",
         "--batch", "256"],
        env=tpu_environment, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE,
    )  # fmt: skip
    assert told.returncode == 0
    plan = json.loads(told.stdout)
    (program,) = plan["programs"]
    assert plan["fits"] and program["flops"] > 0 and program["hbm_bytes"] > 0
    assert {"fsdp"} <= {axis for flow in program["flows"] for axis in flow["axes"]}
