"""`mgie edit` of a folder and of a list, with a tiny model."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import ExifTags, Image

from mgie_jax import cli
from mgie_jax.weights.atomic import fingerprint
from tests.batch.painting import picture
from tests.test_cli import ENV

SCRIPT = "<script>alert('x')</script>"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MGIE_DEBUG", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos")
    for i in range(3):  # with one given, these make the shapes that other tests' edits have: nothing more compiles
        picture(path / f"p{i}.png", i)
    return path


@pytest.fixture(scope="module")
def edited(photos, tiny_model_dir):
    """Where `mgie edit --batch` is to write, its command line, and the lines of its list, two of them bad."""
    out, listed = photos.parent / f"{photos.name}-out", photos / "jobs.jsonl"
    lines = [
        {"photo": "p0.png", "instruction": "brighter", "seed": 3},
        {"photo": "p1.png", "instruction": SCRIPT, "expressive": "The photo is dark.", "output": "one.jpg"},
        {"photo": "missing.png", "instruction": "brighter"},
        {"photo": "jobs.jsonl", "instruction": "brighter"},
        {"photo": "p2.png", "instruction": "gr\u00f6\u00dfer", "output": "two.png"},
        {"photo": "p1.png", "instruction": "dark"},
    ]
    listed.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return (
        out,
        [
            "edit",
            "--batch",
            str(listed),
            "-o",
            str(out),
            "--model",
            str(tiny_model_dir),
            "--seed",
            "9",
            "--batch-size",
            "4",
        ],
        lines,
    )


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_list_is_edited_as_each_photo_alone(edited, photos, folder, tiny_model_dir, capsys):
    out, command, lines = edited
    assert cli.main([*command, "--html", "--compare", "--json"]) == 3
    printed, err = capsys.readouterr()
    assert printed.count("\n") == 1 and "6/6" in err and "photo" in err
    answer = json.loads(printed)
    assert {name: answer[name] for name in ("jobs", "edited", "skipped", "failed")} == {
        "jobs": 6, "edited": 4, "skipped": 0, "failed": 2
    }  # fmt: skip
    assert answer["output"] == str(out) and answer["html"] == str(out / "index.html")
    assert answer["seconds"] > 0 and answer["photos_per_second"] > 0 and 0 <= answer["device_idle"] < 1
    results, errors = lines_of(out / "results.jsonl"), lines_of(out / "errors.jsonl")
    assert [line["output"] for line in results] == ["p0.png", "one.jpg", "two.png", "p1.png"]
    assert [(line["line"], line["photo"]) for line in errors] == [
        (3, str(photos / "missing.png")), (4, str(photos / "jobs.jsonl"))
    ]  # fmt: skip
    assert "no such file" in errors[0]["error"] and "not a picture" in errors[1]["error"]
    page = (out / "index.html").read_text()
    assert page.count("<article>") == 6 and SCRIPT not in page

    model = f"sha256:{fingerprint(tiny_model_dir)}"
    for line, seed in ((lines[0], 3), (lines[4], 9)):
        (result,) = (found for found in results if found["instruction"] == line["instruction"])
        alone = ["edit", str(photos / line["photo"]), line["instruction"], "-o", "alone.png", "--seed", str(seed)]
        assert cli.main([*alone, "--model", str(tiny_model_dir), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["expressive"] == result["expressive"]
        one, many = Image.open("alone.png"), Image.open(out / result["output"])
        assert np.abs(np.asarray(one, np.int16) - np.asarray(many, np.int16)).max() <= 1
        assert np.asarray(one).std() > 1
        assert one.text == many.text == {
            "Software": "MGIE-JAX", "Instruction": line["instruction"], "Expressive": result["expressive"],
            "Seed": str(seed), "Model": model, "Steps": "3", "Sampler": "euler_ancestral", "Guidance-Scale": "7.5",
            "Image-Guidance-Scale": "1.5", "Dtype": "float32",
        }  # fmt: skip
    comment = Image.open(out / "one.jpg").getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    told = json.loads(comment.removeprefix(b"ASCII\0\0\0"))
    assert (told["Instruction"], told["Expressive"], told["Model"]) == (SCRIPT, "The photo is dark.", model)
    assert Image.open(out / "two-compare.png").width > 2 * 384 and Image.open(out / "before/one.jpg.jpg").width == 32

    # Again: only what failed is tried, with no model for what is done; other settings are another run.
    picture(photos / "missing.png", 5)
    assert cli.main([*command, "--json"]) == 3
    again = json.loads(capsys.readouterr().out)
    assert (again["edited"], again["skipped"], again["failed"]) == (1, 4, 1)
    assert cli.main([*command, "--steps", "2"]) == 2
    assert "begun with another steps" in capsys.readouterr().err


def test_a_folder_is_edited_in_the_order_of_names(photos, folder, tiny_model_dir, capsys):
    for i in (2, 0, 1):
        (folder / "in").mkdir(exist_ok=True)
        (folder / "in" / f"p{i}.png").write_bytes((photos / f"p{i}.png").read_bytes())
    command = ["edit", "in", "brighter", "-o", "out", "--model", str(tiny_model_dir), "--seed", "3"]
    assert cli.main([*command, "--html"]) == 0
    out, _ = capsys.readouterr()
    assert "Edited photos: out, 3 of 3" in out and "out/index.html" in out and "photos/s" in out
    assert [line["output"] for line in lines_of(folder / "out" / "results.jsonl")] == ["p0.png", "p1.png", "p2.png"]
    assert sorted(os.listdir("out")) == ["before", "index.html", "p0.png", "p1.png", "p2.png", "results.jsonl",
                                         "settings.json"]  # fmt: skip
    # One at a time, as is usual on a CPU, they are the files of single edits, bit for bit.
    alone = ["edit", "in/p1.png", "brighter", "-o", "alone.png", "--model", str(tiny_model_dir), "--seed", "3"]
    assert cli.main(alone) == 0
    assert (folder / "alone.png").read_bytes() == (folder / "out" / "p1.png").read_bytes()
    capsys.readouterr()
    assert cli.main([*command, "--mesh", "1,1,1"]) == 0  # on whatever devices: the same edits
    assert "0 of 3; 3 were there already" in capsys.readouterr().out


MISTAKES = [
    ("--batch jobs.jsonl", "name it with -o"),
    ("--batch jobs.jsonl p.png -o out", "leave PHOTO and INSTRUCTION out"),
    ("p.png x --batch jobs.jsonl -o out", "leave PHOTO and INSTRUCTION out"),
    ("--batch jobs.jsonl -o out --expressive x", 'give "expressive" in the lines'),
    ("--batch jobs.jsonl -o out --batch-size 0", "--batch-size 0: must be at least 1"),
    ("--batch jobs.jsonl -o out --steps 0", "--steps"),
    ("--batch jobs.jsonl -o out --seed -1", "--seed"),
    ("--batch jobs.jsonl -o out --model nowhere", "nowhere: there is no such model"),
    ("--batch jobs.jsonl -o out --mesh big", "--mesh=-1,1,4"),
    ("--batch nowhere.jsonl -o out", "nowhere.jsonl: cannot be read"),
    ("--batch wrong.jsonl -o out", "2 of 3 lines are wrong: line 1: lacks instruction; line 3: is not JSON"),
    ("--batch jobs.jsonl -o .", "p.png: is one of the photos (line 1)"),
    ("in brighter", "name it with -o"),
    ("in brighter -o in", "is the folder of the photos itself"),
    ("in x -o out --expressive=", "--expressive is empty"),
    ("empty brighter -o out", "empty: holds no photos"),
    ("in", "INSTRUCTION"),
    ("", "PHOTO, INSTRUCTION"),
    ("p.png x --html", "--html is for many photos"),
    ("p.png x --batch-size 4", "--batch-size is for many photos"),
    ("p.png x --distributed", "--distributed is for many photos"),
    ("p.png x --overwrite", "--overwrite is for many photos"),
]


def prepare_mistakes(folder):
    (folder / "in").mkdir()
    (folder / "empty").mkdir()
    picture(folder / "p.png", 0)
    picture(folder / "in" / "p.png", 0)
    (folder / "jobs.jsonl").write_text('{"photo": "p.png", "instruction": "brighter"}\n')
    (folder / "wrong.jsonl").write_text('{"photo": "a"}\n{"photo": "a", "instruction": "b"}\n{\n')


@pytest.mark.parametrize("arguments, why", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(folder, capsys, monkeypatch, arguments, why):
    prepare_mistakes(folder)
    before = sorted(folder.rglob("*"))
    assert cli.main(["edit", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mgie: error: ") and err.count("\n") == 1 and why in err
    assert sorted(folder.rglob("*")) == before


def test_mistakes_are_told_before_jax_is_imported(folder):
    prepare_mistakes(folder)
    code = f"""
import sys
from mgie_jax import cli
for arguments, _ in {MISTAKES!r}:
    assert cli.main(["edit", *arguments.split()]) == 2
print([name for name in ("jax", "flax", "transformers", "torch") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=ENV, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_other_peoples_files_are_not_written_over(folder, tiny_model_dir, capsys):
    prepare_mistakes(folder)
    (folder / "out").mkdir()
    (folder / "out" / "p.png").write_bytes(b"mine")
    assert cli.main(["edit", "in", "brighter", "-o", "out", "--model", str(tiny_model_dir)]) == 2
    assert "out/p.png: is there already" in capsys.readouterr().err
    assert os.listdir("out") == ["p.png"] and (folder / "out" / "p.png").read_bytes() == b"mine"


def test_options_may_stand_between_photo_and_instruction(folder, capsys):
    prepare_mistakes(folder)
    assert cli.main(["edit", "in", "--html", "brighter"]) == 2
    assert "name it with -o" in capsys.readouterr().err


def test_int8_is_one_of_the_settings(folder, tiny_model_dir, capsys, monkeypatch):
    prepare_mistakes(folder)
    command = ["edit", "in", "brighter", "-o", "out", "--model", str(tiny_model_dir), "--expressive", "It is bright."]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "qwix", None)
        assert cli.main([*command, "--quantize", "int8_weights"]) == 2
        assert "pip install 'mgie_jax[int8]'" in capsys.readouterr().err and not os.path.exists("out")
    assert cli.main([*command, "--quantize", "int8_weights"]) == 0
    assert Image.open("out/p.png").text["Quantize"] == "int8_weights"
    for other in ([], ["--quantize", "int8"]):
        assert cli.main([*command, *other]) == 2
        assert "begun with another quantize" in capsys.readouterr().err
    assert cli.main([*command, "--quantize", "int8_weights"]) == 0  # there is nothing left to do
