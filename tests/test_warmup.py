"""`mgie warmup` and then `mgie edit`, as processes of a user who has set up nothing."""

import getpass
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import monitoring
from PIL import Image

from mgie_jax import cli, compilation
from mgie_jax.cli.edit import MAX_STEPS
from mgie_jax.loading import load

ROOT = Path(__file__).parents[1]
# Kept from one run of the tests to the next: compiling takes a while, and nothing here asks that it be done.
CACHE = Path(tempfile.gettempdir(), f"mgie-jax-tests-{getpass.getuser()}-programs")
INSTRUCTION, TEXT = "brighter", "The photo is dark."
TRACED = ("jaxpr_trace_duration", "jaxpr_to_mlir_module_duration", "backend_compile_duration")


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8))


def edited(editor) -> dict[str, np.ndarray]:
    written = editor.edit(photo(), INSTRUCTION, seed=3)
    read = editor.edit(photo(), INSTRUCTION, seed=3, expressive=TEXT)
    long = editor.edit(photo(), "brighter " * 60, seed=3)
    return {
        "written": np.asarray(written.image), "read": np.asarray(read.image), "long": np.asarray(long.image),
        "states": written.states, "words": np.array([written.expressive, long.expressive]),
    }  # fmt: skip


def main(model: str, out: str) -> None:
    """Edits, and counts what is traced, lowered and compiled meanwhile."""
    count = 0

    def listen(event: str, seconds: float, **_: object) -> None:
        nonlocal count
        count += event.endswith(TRACED)

    editor = load(model)
    monitoring.register_event_duration_secs_listener(listen)
    found = edited(editor)
    np.savez(out, events=count, **found)


def run(*command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment | {"XDG_CACHE_HOME": str(CACHE)}, text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def warmup(model: Path, *flags: str) -> dict:
    return json.loads(run("mgie_jax.cli", "warmup", "--model", str(model), "--json", *flags))


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return tiny_model_dir


@pytest.fixture(scope="module")
def warmed(model):
    return warmup(model)


def test_programs_are_those_of_an_edit(warmed):
    assert [one["name"] for one in warmed["programs"]] == [
        "read", "read", "write", "write", "guide", "start", "denoise", "decode"
    ]  # fmt: skip
    assert [one["for"] for one in warmed["programs"]][1:5] == ["384 tokens", "128 tokens", "384 tokens", "32x32"]
    assert all(one["seconds"] > 0 for one in warmed["programs"])


def test_edits_then_compile_nothing_and_are_the_same(warmed, model, tmp_path):
    """Bitwise those of an editor that traces its programs."""
    run("tests.test_warmup", str(model), str(tmp_path / "edits.npz"))
    with np.load(tmp_path / "edits.npz") as found:
        assert found["events"] == 0
        plain = edited(load(model))
        for name, expected in plain.items():
            np.testing.assert_array_equal(found[name], expected, err_msg=name)


def test_a_second_time_there_is_nothing_to_do(warmed, model):
    again = warmup(model)
    assert again["compiled"] == 0 and all(one["kept"] for one in again["programs"])
    assert len(again["programs"]) == len(warmed["programs"])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--size", "3"], "--size 3"),
        (["--size", "0x3"], "such as 4032x3024"),
        (["--batch", "0"], "--batch 0"),
        (["--steps", str(MAX_STEPS + 1)], f"from 1 to {MAX_STEPS}"),
        (["--sampler", "magic"], "euler_ancestral"),
        (["--guidance-scale", "-1"], "--guidance-scale -1"),
        (["--mesh", "2"], "--mesh 2"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, words):
    assert cli.main(["warmup", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mgie: error: ") and err.count("\n") == 1 and words in err


def test_a_cache_that_is_off_is_told(capsys, monkeypatch):
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        assert cli.main(["warmup"]) == 2
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert "JAX_ENABLE_COMPILATION_CACHE" in capsys.readouterr().err


def test_a_users_own_cache_is_left_to_jax(monkeypatch, tmp_path):
    assert jax.config.jax_compilation_cache_dir != str(compilation.cache_dir())
    assert compilation.program_store() is None and not compilation.is_ours()
    monkeypatch.setattr(compilation, "cache_dir", lambda: jax.config.jax_compilation_cache_dir)
    assert compilation.program_store() is not None
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert compilation.program_store() is None


if __name__ == "__main__":
    main(*sys.argv[1:])
