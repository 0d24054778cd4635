"""A sweep tries what might fit, leaves out what cannot, and ranks what does."""

import math
from dataclasses import replace

from mgie_jax.plan.machines import parse_topology
from mgie_jax.plan.plan import Plan
from mgie_jax.plan.sweep import all_meshes, sweep
from tests.plan.made import FACTS, REQUEST, memory


def run(request=REQUEST, kept=64, activations=24, fixed=False):
    """The ranked (mesh, remat, accumulate) on a made-up machine, and all that was compiled."""
    tried, shown = [], []

    def attempt(request):
        data, fsdp, tensor = request.mesh
        train = request.mode == "train"
        remat, parts = (request.config["remat"], request.config["accumulate"]) if train else ("", 1)
        tried.append((request.mesh, remat, parts))
        if data == 8:
            raise ValueError("does not divide")
        temporaries = activations / parts / {"none": 1, "dots": 2, "blocks": 4, "": 1}[remat]
        facts = replace(
            FACTS,
            mesh={"data": data, "fsdp": fsdp, "tensor": tensor},
            memory=memory(kept / (fsdp * tensor) + temporaries, temporaries),
            flops=1e15 * {"none": 3, "dots": 3.5, "blocks": 4, "": 3}[remat] * (1 + 0.1 * parts + 0.01 * tensor),
            flows=(),
        )
        return Plan(request, (facts,), 15.75 * 2**30)

    plans = sweep(request, attempt, lambda *told: shown.append(told), fixed)
    found = [(plan.request.mesh, plan.request.config["remat"], plan.request.config["accumulate"]) for plan in plans]
    assert [plan.seconds for plan in plans] == sorted(plan.seconds for plan in plans)
    assert all(plan.fits for plan in plans)
    assert shown[-1][0] == shown[-1][1] and all(done <= total for done, total, _ in shown)
    return found, tried


def test_every_mesh_of_powers_of_two():
    meshes = list(all_meshes(parse_topology("v5e:2x2", 2)))
    assert sorted(meshes) == sorted({(2, 4, 1), (4, 2, 1), (8, 1, 1), (2, 2, 2), (4, 1, 2), (2, 1, 4)})
    assert all(math.prod(mesh) == 8 for mesh in meshes)


def test_the_fastest_that_fits_comes_first():
    found, tried = run()
    assert found[0] == ((1, 16, 1), "none", 4)
    assert len(set(tried)) == len(tried)
    # Of each mesh and policy only the fewest parts that fit are of interest.
    assert len({(mesh, remat) for mesh, remat, _ in found}) == len(found)


def test_what_is_kept_rules_out_every_mesh_that_cuts_no_finer():
    _, tried = run(kept=200)
    assert not any(fsdp * tensor < 8 for (_, fsdp, tensor), _, _ in tried)


def test_what_did_not_fit_rules_out_what_needs_more():
    _, tried = run(activations=200)
    blocks = [parts for mesh, remat, parts in tried if mesh == (1, 16, 1) and remat == "blocks"]
    dots = [parts for mesh, remat, parts in tried if mesh == (1, 16, 1) and remat == "dots"]
    assert blocks == [1, 2, 4] and min(dots, default=8) >= 4


def test_a_mesh_may_be_given():
    _, tried = run(fixed=True)
    assert {mesh for mesh, _, _ in tried} == {(1, 16, 1)}
    _, tried = run(replace(REQUEST, mesh=(1, -1, 2)), fixed=True)
    assert {mesh for mesh, _, _ in tried} == {(1, 8, 2)}


def test_edits_have_meshes_only():
    _, tried = run(replace(REQUEST, mode="edit", batch=16))
    assert len(tried) == len({mesh for mesh, _, _ in tried})
