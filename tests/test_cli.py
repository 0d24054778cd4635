"""The command line: bad input answers at once in one line, good input writes what it says and no more."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import mgie_jax
from mgie_jax import cli
from mgie_jax.cli.edit import QUANTIZE, SAMPLERS

# Works from any folder, whether or not the package is installed.
ROOT = str(Path(mgie_jax.__file__).parents[1])
ENV = os.environ | {"PYTHONPATH": os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])}
EXPRESSIVE = "The photo is dark and cool. It becomes much brighter."


class FakeEditor:
    """Answers as the real editor does, with the photo turned green."""

    def __init__(self, failure=None):
        self.failure, self.calls, self.loaded = failure, [], []

    def edit(self, photo, instruction, *, progress, seed, expressive, **settings):
        self.calls.append({"instruction": instruction, "seed": seed, "expressive": expressive, **settings})
        print("a library's chatter")
        for done in (1, 2, 4):
            progress(done, 4)
            if self.failure:
                raise self.failure
        return SimpleNamespace(
            image=Image.new("RGB", (128, 96), "green"),
            before=photo.resize((128, 96)),
            expressive=expressive or EXPRESSIVE,
            seed=seed,
            seconds={"write": 0.5, "denoise": 1.25},
            note="half of the photo was cropped",
        )


@pytest.fixture
def editor(monkeypatch, tmp_path):
    fake = FakeEditor()
    # Into the dictionary, for asking the module for its own `load` would import the real editor.
    monkeypatch.setitem(vars(mgie_jax), "load", lambda model_dir=None, **how: fake.loaded.append(how) or fake)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MGIE_DEBUG", raising=False)
    Image.new("RGB", (40, 30), "red").save("my photo.jpg")
    return fake


def _files():
    return sorted(os.listdir("."))


def test_the_edited_photo_is_named_after_the_photo(editor, capsys):
    assert cli.main(["edit", "my photo.jpg", "  make it \n brighter "]) == 0
    out, err = capsys.readouterr()
    assert _files() == ["my photo-edited.png", "my photo.jpg"]
    assert Image.open("my photo-edited.png").size == (128, 96)
    assert EXPRESSIVE in out and "my photo-edited.png" in out
    assert "chatter" not in out and "4/4" in err and "half of the photo was cropped" in err
    assert editor.calls == [
        {
            "instruction": "make it brighter",
            "seed": 0,
            "expressive": None,
            "steps": None,
            "sampler": None,
            "guidance_scale": None,
            "image_guidance_scale": None,
        }
    ]


def test_settings_reach_the_editor_and_compare_writes_both(editor):
    arguments = "-o new.jpg --compare --steps 5 --sampler ddim --guidance-scale 3 --image-guidance-scale 0"
    arguments += " --seed 4294967295 --expressive Brighter. --"
    assert cli.main(["edit", *arguments.split(), "my photo.jpg", "-brighter"]) == 0
    assert _files() == ["my photo.jpg", "new-compare.jpg", "new.jpg"]
    assert Image.open("new-compare.jpg").width > 2 * 384
    assert editor.calls == [
        {
            "instruction": "-brighter",
            "seed": 2**32 - 1,
            "expressive": "Brighter.",
            "steps": 5,
            "sampler": "ddim",
            "guidance_scale": 3.0,
            "image_guidance_scale": 0.0,
        }
    ]


def test_int8_is_the_models_and_told_in_the_file(editor):
    from mgie_jax.models.quantize import MODES

    assert QUANTIZE == MODES
    for mode in (*MODES, None):
        assert cli.main(["edit", "my photo.jpg", "brighter", *(["--quantize", mode] if mode else [])]) == 0
        assert Image.open("my photo-edited.png").text.get("Quantize") == mode
    assert [how["quantize"] for how in editor.loaded] == [*MODES, None]


def test_json_is_one_line_and_all_there_is_on_stdout(editor, capsys):
    assert cli.main(["edit", "my photo.jpg", "brighter", "--json", "--seed", "7"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    answer = json.loads(out)
    assert set(answer) == {"expressive", "seed", "size", "output", "seconds"}
    assert (answer["expressive"], answer["seed"], answer["size"]) == (EXPRESSIVE, 7, [128, 96])
    assert answer["output"] == "my photo-edited.png"
    assert answer["seconds"]["denoise"] == 1.25 and {"load", "save"} <= set(answer["seconds"])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "COMMAND"),
        (["paint"], "invalid choice"),
        (["edit", "my photo.jpg"], "INSTRUCTION"),
        (["edit", "my photo.jpg", ""], "empty"),
        (["edit", "my photo.jpg", " \t\n"], "empty"),
        (["edit", "my photo.jpg", "bright " * 200], "characters"),
        (["edit", "my photo.jpg", "bad \udcff byte"], "UTF-8"),
        (["edit", "my photo.jpg", "x", "--expressive", " "], "--expressive is empty"),
        (["edit", "my photo.jpg", "x", "--steps", "0"], "--steps"),
        (["edit", "my photo.jpg", "x", "--steps", "1001"], "--steps"),
        (["edit", "my photo.jpg", "x", "--steps", "many"], "--steps"),
        (["edit", "my photo.jpg", "x", "--sampler", "magic"], "euler_ancestral"),
        (["edit", "my photo.jpg", "x", "--guidance-scale", "-1"], "--guidance-scale"),
        (["edit", "my photo.jpg", "x", "--guidance-scale", "nan"], "--guidance-scale"),
        (["edit", "my photo.jpg", "x", "--image-guidance-scale", "inf"], "--image-guidance-scale"),
        (["edit", "my photo.jpg", "x", "--seed", "-1"], "--seed"),
        (["edit", "my photo.jpg", "x", "--seed", str(2**32)], "--seed"),
        (["edit", "my photo.jpg", "x", "--quantize", "int4"], "int8_weights"),
        (["edit", "my photo.jpg", "x", "--model", "nowhere"], "nowhere"),
        (["edit", "my photo.jpg", "x", "-o", "nowhere/a.png"], "nowhere"),
        (["edit", "my photo.jpg", "x", "-o", "a.docx"], ".docx"),
        (["edit", "my photo.jpg", "x", "-o", "my photo.jpg"], "is the photo itself"),
        (["edit", "missing.jpg", "x"], "missing.jpg"),
        (["edit", ".", "x"], "folder"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(editor, capsys, arguments, words):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mgie: error: ") and err.count("\n") == 1
    assert words in err
    assert editor.calls == [] and _files() == ["my photo.jpg"]


@pytest.mark.parametrize(
    "failure, code, words",
    [
        (ValueError("the prompt has 600 tokens;\nat most 512"), 2, "600 tokens; at most 512"),
        (RuntimeError("out of memory"), 1, "RuntimeError: out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("callback failed: KeyboardInterrupt"), 130, "interrupted"),
    ],
)
def test_a_failure_in_the_editor_leaves_nothing(editor, capsys, failure, code, words):
    editor.failure = failure
    assert cli.main(["edit", "my photo.jpg", "brighter"]) == code
    out, err = capsys.readouterr()
    assert out == "" and words in err and "Traceback" not in err
    assert _files() == ["my photo.jpg"]


def test_debug_shows_the_traceback(editor, monkeypatch):
    monkeypatch.setenv("MGIE_DEBUG", "1")
    editor.failure = ValueError("inside")
    with pytest.raises(ValueError, match="inside"):
        cli.main(["edit", "my photo.jpg", "brighter"])


@pytest.mark.parametrize(
    "arguments, words",
    [(["--version"], mgie_jax.__version__), (["--help"], "edit"), (["edit", "-h"], "examples:")],
)
def test_version_and_help(capsys, arguments, words):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 0
    assert words in capsys.readouterr().out


def test_samplers_are_those_there_are():
    from mgie_jax.diffusion import sample

    assert set(SAMPLERS) == set(sample.SAMPLERS)


def _python(*arguments, cwd):
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=ENV, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("content", [None, b"", b"not a picture", b"\xff\xd8\xff\xe0\x00\x10JFIF"])
def test_a_bad_photo_ends_the_process_with_2(tmp_path, content):
    if content is not None:
        (tmp_path / "photo.jpg").write_bytes(content)
    before = os.listdir(tmp_path)
    done = _python("-m", "mgie_jax.cli", "edit", "photo.jpg", "brighter", "--json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mgie: error: photo.jpg: ") and done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == before


def test_bad_input_answers_before_jax_is_imported(tmp_path):
    code = "import sys; from mgie_jax import cli; assert cli.main(['edit', 'missing.jpg', 'x']) == 2\n"
    code += "print([name for name in ('jax', 'flax', 'transformers', 'torch') if name in sys.modules])"
    done = _python("-c", code, cwd=tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_ends_the_process_with_130(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    code = """
import signal, sys, time, mgie_jax
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests were started in the background
from mgie_jax import cli
def load(model_dir, **mesh):
    print("ready", file=sys.stderr, flush=True)
    time.sleep(60)
mgie_jax.load = load
sys.exit(cli.main(["edit", "photo.png", "brighter"]))
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=ENV, stderr=subprocess.PIPE, text=True)
    start = time.monotonic()
    for line in process.stderr:
        if "ready" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and "Traceback" not in rest and "interrupted" in rest
    assert time.monotonic() - start < 30 and os.listdir(tmp_path) == ["photo.png"]
