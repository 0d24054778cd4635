"""The roofline's arithmetic, on round numbers."""

from dataclasses import replace

import pytest

from mgie_jax.plan.facts import Flow
from mgie_jax.plan.machines import MACHINES
from mgie_jax.plan.roofline import roofline
from tests.plan.made import FACTS, plan

V5E = MACHINES["v5e"]


def test_each_of_the_four():
    line = roofline(FACTS, V5E)
    assert (line.compute, line.hbm, line.ici, line.dcn) == pytest.approx((2.0, 1.0, 1.0, 1.0))
    assert (line.seconds, line.bound, line.mfu) == (2.0, "compute", 0.25)


@pytest.mark.parametrize(
    "changes, bound, seconds",
    [
        ({"hbm_bytes": 819 * 10**9 * 3}, "hbm", 3.0),
        ({"flows": (Flow("all-gather", ("fsdp",), False, 2.0, 1, 0, 5e11),)}, "ici", 5.0),
        ({"flows": (Flow("all-gather", ("data",), True, 0.0, 1, 0, 4 * 3.125e9),)}, "dcn", 4.0),
    ],
)
def test_the_slowest_is_the_bound(changes, bound, seconds):
    line = roofline(replace(FACTS, **changes), V5E)
    assert (line.bound, line.seconds) == (bound, pytest.approx(seconds))


def test_axes_add_up():
    flows = (
        Flow("all-gather", ("fsdp",), False, 2.0, 1, 0, 1e11),
        Flow("reduce-scatter", ("fsdp",), False, 2.0, 1, 0, 1e11),
        Flow("all-reduce", ("fsdp", "tensor"), False, 4.0, 1, 0, 1e11),
        Flow("collective-permute", ("tensor",), False, 1.0, 1, 0, 1e11),
    )
    line = roofline(replace(FACTS, flows=flows), V5E)
    assert line.axes == pytest.approx({"fsdp": 2.0, "fsdp+tensor": 0.5, "tensor": 2.0})
    assert line.ici == pytest.approx(4.5)


def test_runs_multiply_and_programs_follow_one_another():
    thrice = replace(FACTS, runs=3)
    assert roofline(thrice, V5E).seconds == pytest.approx(6.0)
    both = replace(plan(), facts=(FACTS, thrice))
    assert both.seconds == pytest.approx(8.0) and both.mfu == pytest.approx(0.25)


def test_a_program_without_work_takes_no_time():
    idle = replace(FACTS, flops=0.0, model_flops=0.0, hbm_bytes=0, flows=())
    line = roofline(idle, V5E)
    assert (line.seconds, line.mfu) == (0.0, 0.0)
