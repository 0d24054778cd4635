"""`mgie plan` with the real TPU compiler, on the smallest model."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = ["--config", str(ROOT / "configs" / "test.py")]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "plan.json").read_text())
DOES_NOT_FIT = 3
KINDS = {"all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"}


def mgie_plan(environment, *arguments):
    """Exit code, what is on standard output, what is on standard error."""
    command = [sys.executable, "-m", "mgie_jax.cli", "plan", *CONFIG, *arguments]
    told = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    return told.returncode, told.stdout, told.stderr


@pytest.fixture(scope="module")
def plans(tpu_environment):
    """What `mgie plan` answers in each mode; both are planned at once, for it takes them most of a minute."""

    def answer(mode):
        return mgie_plan(tpu_environment, "--topology", "v5e:2x2", "--mode", mode, "--mesh", "fsdp=4", "--batch", "4",
                         "--json")  # fmt: skip

    with ThreadPoolExecutor() as pool:
        return dict(zip(GOLDEN, pool.map(answer, GOLDEN), strict=True))


@pytest.fixture(params=sorted(GOLDEN))
def planned(request, plans):
    """(the plan of a mode on v5e:2x2, and what is known of it)."""
    code, out, err = plans[request.param]
    assert code == 0, err
    assert f"compiling {GOLDEN[request.param][0]['name']} for v5e:2x2, mesh 1,4,1" in err and "E0000" not in err
    return json.loads(out), GOLDEN[request.param]


def test_memory_is_what_it_was(planned):
    plan, golden = planned
    assert [program["name"] for program in plan["programs"]] == [known["name"] for known in golden]
    for program, known in zip(plan["programs"], golden, strict=True):
        for part, size in known["memory"].items():
            assert program["memory"][part] == pytest.approx(size, rel=0.02, abs=512), (program["name"], part)


def test_a_whole_report(planned):
    plan, _ = planned
    assert plan["fits"] and plan["machine"] == "TPU v5e" and plan["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    assert plan["best_seconds"] == pytest.approx(sum(p["roofline"]["seconds"] for p in plan["programs"]))
    for program in plan["programs"]:
        memory = program["memory"]
        parts = sum(memory[name] for name in ("arguments", "unread", "outputs", "temporaries", "code"))
        assert program["total_bytes"] == parts - memory["aliased"] <= plan["total_bytes"]
        assert sum(program["parts"].values()) == memory["arguments"] + memory["unread"]
        assert program["flops"] >= program["shared_flops"] >= program["model_flops"] * 0.99 > 0
        assert {flow["kind"] for flow in program["flows"]} <= KINDS
        assert {axis for flow in program["flows"] for axis in flow["axes"]} == {"fsdp"}
        assert 0 < len(program["buffers"]) <= 10
    step = plan["programs"][0]
    assert {b["name"].split("/")[0] for b in step["buffers"] if b["kind"] == "argument"} <= set(step["parts"]) | {
        "state", "frozen", "batch", "params"}  # fmt: skip


def test_what_the_compiler_refuses_does_not_fit(tpu_environment):
    code, out, _ = mgie_plan(tpu_environment, "--topology", "v5e:2x2", "--mode", "prepare", "--mesh", "fsdp=4",
                             "--batch", str(2**22), "--no-advice", "--json")  # fmt: skip
    plan = json.loads(out)
    (program,) = plan["programs"]
    assert code == DOES_NOT_FIT and not plan["fits"] and plan["change"] is None
    assert "RESOURCE_EXHAUSTED" in program["refused"]
    assert program["memory"]["temporaries"] > 2**40 and program["memory"]["arguments"] > 2**33
    largest = program["buffers"][0]
    assert largest["kind"] == "temporary" and "self_attn" in largest["name"] and largest["nbytes"] > 2**40


def test_a_gpu_is_estimated_without_the_tpu_compiler():
    code, out, err = mgie_plan(None, "--topology", "h200:2", "--mode", "prepare", "--mesh", "fsdp=2", "--batch", "4",
                               "--hbm-gib", "0.008", "--json")  # fmt: skip
    plan = json.loads(out)
    assert code == DOES_NOT_FIT and plan["estimate"] and plan["machine"] == "NVIDIA H200", err
    # Half of the batch fits, and that is found by compiling it.
    assert plan["change"]["flags"] == "--batch 2"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--mesh", "data=2,fsdp=2,tensor=2"], "8 does not make 4 devices"),
        (["--slices", "2", "--mesh", "data=1,fsdp=8"], "multiple of 2"),
    ],
)
def test_what_does_not_divide_is_an_error(tpu_environment, arguments, words):
    code, out, err = mgie_plan(tpu_environment, "--topology", "v5e:2x2", *arguments)
    assert code == 2 and out == "" and err.splitlines()[-1].startswith("mgie: error: ") and words in err
