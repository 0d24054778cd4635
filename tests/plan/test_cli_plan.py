"""What the command answers, its exit codes and errors. The compiler is made up; test_planner.py has the real one."""

import json
from dataclasses import replace

import pytest

from mgie_jax.cli import main
from mgie_jax.plan import plan as planning
from tests.plan.made import FACTS, memory

COMMAND = ["plan", "--config", "configs/test.py", "--topology", "h200:8"]  # needs no libtpu


@pytest.fixture
def compiler(monkeypatch):
    """A compiler of programs that take 160 GiB in one part; a list of what it was asked."""
    asked = []

    def compile_ahead(request, watch):
        asked.append(request)
        watch("train")
        needs = 160 / request.config["accumulate"]
        sizes = [8 if size == -1 else size for size in request.mesh]
        mesh = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
        return [replace(FACTS, memory=memory(needs, needs - 4), mesh=mesh)]

    monkeypatch.setattr(planning, "compile_ahead", compile_ahead)
    return asked


def test_what_does_not_fit_ends_with_code_3_and_the_smallest_change(compiler, capsys):
    assert main(COMMAND) == 3
    told = capsys.readouterr()
    assert "It does not fit: 160.00 GiB of 131.32 GiB a device." in told.out
    assert "The smallest change found that makes it fit: --config.accumulate=2 (80.00 GiB a device)" in told.out
    assert "mgie plan: compiling train for h200:8, mesh 1,-1,1, 0:00" in told.err
    assert [request.config["accumulate"] for request in compiler] == [1, 2]


def test_advice_may_be_declined(compiler, capsys):
    assert main([*COMMAND, "--no-advice"]) == 3
    assert len(compiler) == 1 and "smallest change" not in capsys.readouterr().out


def test_what_fits_ends_with_code_0(compiler, capsys):
    assert main([*COMMAND, "--config.accumulate=2", "--config.remat=dots", "--batch", "64"]) == 0
    assert "It fits" in capsys.readouterr().out
    (request,) = compiler
    assert (request.config["remat"], request.batch, request.mode) == ("dots", 64, "train")


def test_an_edit_in_int8(compiler, capsys):
    arguments = ["--mode", "edit", "--config.accumulate=2", "--quantize", "int8_weights"]
    assert main([*COMMAND, *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quantize"] == "int8_weights"
    assert main([*COMMAND, *arguments]) == 0
    assert ", int8_weights" in capsys.readouterr().out
    assert [(request.mode, request.quantize) for request in compiler] == [("edit", "int8_weights")] * 2


def test_less_memory_may_be_given(compiler, capsys):
    assert main([*COMMAND, "--config.accumulate=2", "--hbm-gib", "79", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["hbm_bytes"] == 79 * 2**30 and told["change"] == {"flags": "--config.accumulate=4",
                                                                  "total_bytes": 40 * 2**30}  # fmt: skip


def test_a_page(compiler, capsys, tmp_path):
    assert main([*COMMAND, "--html", str(tmp_path / "plan.html")]) == 3
    made = (tmp_path / "plan.html").read_text()
    assert "--config.accumulate=2" in made and "does not fit" in made
    assert [path.name for path in tmp_path.iterdir()] == ["plan.html"]


def test_a_sweep(compiler, capsys):
    assert main([*COMMAND, "--sweep", "--batch", "64", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["plans"]) > 5 and all(plan["fits"] for plan in told["plans"])
    assert min(plan["accumulate"] for plan in told["plans"]) == 2
    assert main([*COMMAND, "--sweep", "--mesh", "fsdp=8", "--batch", "64", "--hbm-gib", "3"]) == 3
    assert "Nothing that was tried fits h200:8" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--topology", "v7e:4x4"], "no such machine; known are v4, v5e"),
        (["--topology", "v5e:5x5"], "v5e:4x4"),
        (["--slices", "0"], "0 slices"),
        (["--mesh", "fsdp=8,expert=2"], "--mesh fsdp=8,expert=2"),
        (["--config", "configs/none.py"], "no such config file"),
        (["--config.learning=1"], "learning"),
        (["--hbm-gib", "0"], "--hbm-gib"),
        (["--batch", "0"], "--batch"),
        (["--mode", "dance"], "dance"),
        (["--sweep", "--html", "x.html"], "--html"),
        (["--quantize", "int8"], "--quantize is of an edit"),
        (["--mode", "edit", "--quantize", "int2"], "int8_weights"),
    ],
)
def test_errors_are_one_line_and_code_2(compiler, capsys, arguments, words):
    assert main([*COMMAND, *arguments]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and words in told.err and not compiler


def test_a_missing_compiler_is_said_before_anything_else(monkeypatch, compiler, capsys):
    from mgie_jax.plan import machines

    monkeypatch.setattr(machines.importlib.util, "find_spec", lambda name: None)
    assert main([*COMMAND, "--topology", "v5e:4x4"]) == 2
    assert "pip install 'mgie_jax[tpu]'" in capsys.readouterr().err
