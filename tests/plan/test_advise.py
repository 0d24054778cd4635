"""The smallest change that makes a run fit: looked for from small to large, compiling no more than it must."""

from dataclasses import replace

import pytest

from mgie_jax.plan.advise import smallest_change
from mgie_jax.plan.plan import Plan
from tests.plan.made import FACTS, REQUEST, memory, plan


def chip(request, kept=6.0, activations=64.0):
    """Memory of a device of a made-up machine: what is kept is cut by fsdp, activations by parts and by remat too."""
    data, fsdp, _ = request.mesh
    train = request.mode == "train"
    parts = request.config["accumulate"] if train else 1
    saved = {"none": 1, "dots": 2, "blocks": 4}[request.config["remat"]] if train else 1
    batch = (request.batch or 64) / 64
    temporaries = activations * batch / parts / saved
    mesh = {"data": data, "fsdp": fsdp, "tensor": request.mesh[2]}
    facts = replace(FACTS, memory=memory(kept * 16 / fsdp + temporaries, temporaries), mesh=mesh,
                    examples=request.batch or 64)  # fmt: skip
    return Plan(request, (facts,), 15.75 * 2**30)


def search(request, **sizes):
    """(flags of the change found, flags of all that was compiled for it)."""
    tried = []

    def attempt(request):
        tried.append(request)
        return chip(request, **sizes)

    found = smallest_change(chip(request, **sizes), attempt)
    return (found[0].flags if found else None), tried


def test_a_batch_in_more_parts_comes_first():
    flags, tried = search(REQUEST, activations=32.0)
    assert flags == "--config.accumulate=4"
    assert len(tried) == 1  # 2 could not do, had it saved half of all temporaries


def test_parts_that_two_attempts_rule_out_are_not_compiled():
    """Activations of which a part stays however many parts there are."""
    tried = []

    def fixed(request):
        n = request.config["accumulate"]
        facts = replace(FACTS, memory=memory(6 + 8 + 30 / n, 8 + 30 / n), examples=256)
        return Plan(request, (facts,), 15.75 * 2**30)

    def attempt(request):
        tried.append((request.config["accumulate"], request.config["remat"]))
        return fixed(request) if request.config["remat"] == "none" else chip(request, activations=16.0)

    found = smallest_change(fixed(REQUEST), attempt)
    assert found[0].flags == "--config.remat=dots"
    assert tried == [(4, "none"), (1, "dots")]


def test_then_a_policy_then_both():
    two = replace(FACTS, examples=16)  # one row a device: it cannot be parted

    def attempt(request):
        return chip(request, activations=36.0)

    start = Plan(REQUEST, (replace(two, memory=memory(6 + 36, 36)),), 15.75 * 2**30)
    assert smallest_change(start, attempt)[0].flags == "--config.remat=blocks"
    flags, _ = search(REQUEST, activations=150.0)
    assert flags == "--config.remat=blocks --config.accumulate=4"


def test_what_is_kept_needs_more_of_fsdp_at_once():
    request = replace(REQUEST, mesh=(4, 4, 1))
    start = chip(request, kept=6.0, activations=2.0)
    start = replace(start, facts=(replace(start.facts[0], mesh={"data": 4, "fsdp": 4, "tensor": 1}),))
    tried = []

    def attempt(request):
        tried.append(request.mesh)
        return chip(request, kept=6.0, activations=2.0)

    change, fits = smallest_change(start, attempt)
    assert change.flags == "--mesh data=2,fsdp=8,tensor=1" and fits.fits and tried == [(2, 8, 1)]


def test_then_a_larger_slice():
    flags, _ = search(REQUEST, kept=20.0, activations=1.0)
    assert flags == "--topology v5e:4x8 --mesh data=1,fsdp=32,tensor=1"


def test_edits_take_a_smaller_batch():
    request = replace(REQUEST, mode="edit", batch=64)
    assert search(request, activations=30.0)[0] == "--batch 16"


def test_slices_keep_whole_replicas():
    request = replace(REQUEST, slices=2, mesh=(2, 16, 1))
    start = plan(request, mesh={"data": 2, "fsdp": 16, "tensor": 1}, memory=memory(20, 1))
    tried = []

    def attempt(request):
        tried.append(request.mesh)
        raise ValueError("no")

    assert smallest_change(start, attempt) is None
    assert all(mesh[0] % 2 == 0 for mesh in tried) and tried


@pytest.mark.parametrize("kept", [2000.0])
def test_nothing_may_do(kept):
    assert search(REQUEST, kept=kept)[0] is None
