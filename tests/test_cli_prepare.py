"""`mgie prepare`."""

import json
import os
from dataclasses import replace

import pytest

from mgie_jax import cli
from mgie_jax.data.records import load
from tests.data.preparing import examples, picture, write
from tests.weights.t5_files import write_t5


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MGIE_DEBUG", raising=False)
    return tmp_path


def test_prepare_then_show(folder, tiny_model_dir, capsys):
    found = examples(6)
    found[3] = replace(found[3], source=picture(3)[:-200])
    write(folder / "data", {"train": found})
    write_t5(folder / "t5")
    usual = f"--model {tiny_model_dir} --summarizer t5 --batch-size 3 --max-new-tokens 16".split()
    assert cli.main(["prepare", "data", "out", *usual]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "train-3 (the picture before: is damaged" in err and "--max-skipped" in err
    command = ["prepare", "data", "out", *usual, "--max-skipped", "0.2", "--json"]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and "6/6" in err and "5/5" in err
    answer = json.loads(out)
    assert answer.pop("seconds") > 0 and answer.pop("examples_per_second") >= 0 and answer.pop("asked") <= 5
    log = "out/skipped.jsonl"
    assert answer == {"path": "out", "splits": {"train": 5}, "examples": 6, "empty": 0, "skipped": 1, "log": log}
    new = list(load("out"))
    assert [(e.id, e.source, e.target) for e in new] == [(e.id, e.source, e.target) for e in found if e.id != "train-3"]
    assert all(e.expressive and e.expressive != e.instruction for e in new)
    assert cli.main(["data", "show", "out", "-n", "2"]) == 0

    # Done is done; other settings are another data set.
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["asked"] == 0
    assert cli.main([*command, "--limit", "2"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert sorted(os.listdir(folder)) == ["data", "out", "sheet.png", "t5"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("data", "OUT"),
        ("data out", "--summarizer"),
        ("nowhere out --summarizer none", "nowhere: there is no such folder"),
        ("empty out --summarizer none", "empty: is no data set"),
        ("data out --summarizer nowhere", "nowhere is not a folder"),
        ("data out --summarizer empty", "config.json"),
        ("data out --summarizer none --model empty", "is not a model directory"),
        ("data out --summarizer none --split dev", "has no split 'dev'; it has train"),
        ("data out --summarizer none --batch-size 0", "--batch-size must be at least 1"),
        ("data out --summarizer none --max-new-tokens 0", "--max-new-tokens must be at least 1"),
        ("data out --summarizer none --limit 0", "--limit must be at least 1"),
        ("data out --summarizer none --max-skipped 2", "between 0 and 1"),
        ("data out --summarizer none --mesh big", "--mesh=-1,1,4"),
        ("data out --summarizer none --mesh 7,1,1", "set one size to -1"),
        ("data out --summarizer none --dtype int8", "invalid choice"),
        ("data empty --summarizer none", "empty: exists already"),
        ("data empty --summarizer none --overwrite", "empty: is no data set"),
        ("data data --summarizer none --overwrite", "not apart from"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(folder, frogs, capsys, arguments, words):
    (folder / "data").symlink_to(frogs)
    (folder / "empty").mkdir()
    assert cli.main(["prepare", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mgie: error: ") and err.count("\n") == 1 and words in err
    assert sorted(os.listdir(folder)) == ["data", "empty"] and not os.listdir(folder / "empty")


@pytest.fixture(scope="module")
def frogs(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"), {"train": examples(2)})


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        cli.main(["prepare", "--help"])
    assert "  mgie prepare " in capsys.readouterr().out
