"""`mgie data build` and `mgie data show`."""

import json

import numpy as np
import pytest
from PIL import Image

from mgie_jax import cli


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MGIE_DEBUG", raising=False)
    return tmp_path


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (140, 130, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def photo_folder(root):
    index = []
    for number, split in enumerate(("train", "train", "heldout")):
        picture(root / f"{number}.jpg", number)
        index.append({"name": f"{number}.jpg", "origin": f"{number}", "size": [130, 140], "split": split})
    (root / "index.json").write_text(json.dumps(index))


def test_build_then_show(folder, capsys):
    for number in range(5):  # of three pairs, the last has lost its second half
        picture(folder / "source" / "0000132" / f"{number // 2}_{number % 2}.jpg", number)
    (folder / "source" / "0000132" / "prompt.json").write_text('{"edit": "add fog"}')
    arguments = ["data", "build", "ipr2pr", "source", "out"]
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and "0000132_2_0" in err and "--max-skipped" in err

    assert cli.main([*arguments, "--max-skipped", "0.5", "--json"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and "3/3" in err
    answer = json.loads(out)
    assert answer.pop("bytes") > 0 and answer.pop("seconds") > 0
    log = "out/ipr2pr/skipped.jsonl"
    assert answer == {"path": "out/ipr2pr/1.0.0", "splits": {"train": 2}, "skipped": 1, "log": log}

    assert cli.main(["data", "show", "out"]) == 0
    assert Image.open("sheet.png").height == 2 * 154 + 10
    assert cli.main(["data", "show", "out/ipr2pr", "-o", "one.png", "-n", "1"]) == 0
    assert "one.png" in capsys.readouterr().out
    pictures = set()
    for seed in range(8):
        assert cli.main(["data", "show", "out", "-o", "one.png", "-n", "1", "--seed", str(seed)]) == 0
        pictures.add(Image.open("one.png").tobytes())
    assert len(pictures) == 2  # the seed chooses, and nothing but the seed


def test_build_of_a_split_and_of_generated_examples(folder, capsys):
    for name in ("a.jpg", "b.jpg"):
        picture(folder / "source" / "images" / name, 1)
    row = {"img0": "a.jpg", "img1": "b.jpg", "sents": ["fog", "add fog", "more fog"], "uid": "Reddit_1"}
    for split in ("train", "valid"):
        (folder / "source" / f"{split}.json").write_text(json.dumps([row]))
    assert cli.main(["data", "build", "evr", "source", "out", "--split", "valid"]) == 0
    assert "3 valid" in capsys.readouterr().out
    photo_folder(folder / "photos")
    assert cli.main("data build generated photos out --examples 2 --size 32 --seed 1 --json".split()) == 0
    assert json.loads(capsys.readouterr().out)["splits"] == {"train": 2, "heldout": 2}
    assert cli.main("data show out/generated --split heldout -o a.png".split()) == 0
    assert Image.open("a.png").height == 2 * 154 + 10


def test_show_generates_from_a_folder_of_photos(folder):
    photo_folder(folder / "photos")
    assert cli.main("data show photos -o a.png -n 3 --size 32".split()) == 0
    assert Image.open("a.png").height == 3 * 154 + 10


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("build", "NAME"),
        ("build other source out", "invalid choice"),
        ("build evr nowhere out", "nowhere: there is no such folder"),
        ("build evr source out", "train.json"),
        ("build evr source out --max-skipped 1.5", "between 0 and 1"),
        ("build evr source out --examples 3", "--examples is of `generated` alone"),
        ("build generated source out --examples 0", "at least 1"),
        ("build generated source out", "mgie data photos"),
        ("show", "DATASET"),
        ("show source", "is no data set"),
        ("show nowhere", "there is no such folder"),
        ("show source -n 0", "-n must be"),
        ("show source --seed -1", "--seed"),
        ("show source --size 3", "--size is of generated examples"),
        ("show source -o nowhere/a.png", "nowhere"),
        ("show source -o a.docx", ".docx"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(folder, capsys, arguments, words):
    (folder / "source").mkdir()
    assert cli.main(["data", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mgie: error: ") and err.count("\n") == 1 and words in err
    assert [path.name for path in folder.iterdir() if path.name != "out"] == ["source"]


@pytest.mark.parametrize("action", ["photos", "build", "show"])
def test_help_has_examples(action, capsys):
    with pytest.raises(SystemExit):
        cli.main(["data", action, "--help"])
    assert f"  mgie data {action} " in capsys.readouterr().out
