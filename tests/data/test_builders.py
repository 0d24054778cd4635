"""Data sets of editing pairs: every published layout, written, skipped where broken, read back byte for byte."""

import io
import json
import multiprocessing
import os
import pickle
import signal

import numpy as np
import pytest
from PIL import Image

from mgie_jax.cli.data import NAMES
from mgie_jax.data.builders import base
from mgie_jax.data.builders.build import BUILDERS, build
from mgie_jax.data.builders.candidates import MAX_CHARACTERS, Candidate, Pair, examine
from mgie_jax.data.builders.safe_pickle import read_pickle
from mgie_jax.data.records import DataSetError, load
from tests.data.layouts import LAYOUTS, evr, ipr2pr_folders, ipr2pr_prepared, ma5k, magicbrush, picture, write


@pytest.mark.parametrize("name, layout", LAYOUTS)
def test_what_is_read_back_is_what_went_in(tmp_path, name, layout):
    expected = layout(tmp_path / "source")
    built = build(name, tmp_path / "source", tmp_path / "out", max_skipped=0.0)
    assert built.splits == {split: len(found) for split, found in expected.items()}
    assert (built.skipped, built.log) == (0, None) and not (tmp_path / "out" / name / base.LOG).exists()
    for split, found in expected.items():
        examples = load(tmp_path / "out", split)
        assert list(examples) == list(found.values())  # and in the order of the layout
        assert examples[-1] == examples[len(examples) - 1] == examples.__getitems__([len(examples) - 1])[0]


def test_several_shards_hold_the_same_examples_in_the_same_order(tmp_path, monkeypatch):
    expected = ipr2pr_prepared(tmp_path / "source", rows=9)["train"]
    write(tmp_path / "source" / "ipr2pr.tsv", break_line(tmp_path / "source" / "ipr2pr.tsv", 4))
    monkeypatch.setattr(base, "SHARD_BYTES", 1)  # every example a shard of its own, the broken one's is empty
    seen = []
    progress = lambda *at: seen.append(at)  # noqa: E731
    built = build("ipr2pr", tmp_path / "source", tmp_path / "out", max_skipped=0.2, progress=progress)
    assert len(list(built.path.glob("*array_record*"))) == 9 and built.skipped == 1
    del expected["0000132_4_0"]
    assert list(load(tmp_path / "out")) == list(expected.values())
    assert seen == [(i + 1, 9) for i in range(9)]


def break_line(path, number):
    """The bytes of a prepared file with a character that is not base64 in one line."""
    lines = path.read_bytes().split(b"\n")
    lines[number] = b"!" + lines[number][1:]
    return b"\n".join(lines)


def test_examples_are_a_source_for_worker_processes(tmp_path):
    expected = list(ipr2pr_prepared(tmp_path / "source")["train"].values())
    build("ipr2pr", tmp_path / "source", tmp_path / "out")
    examples = load(tmp_path / "out" / "ipr2pr" / "1.0.0")
    assert examples[0] == expected[0]
    copy = pickle.loads(pickle.dumps(examples))
    assert list(copy) == expected and repr(copy) == repr(examples)
    assert str(tmp_path) not in repr(examples)
    for index in (3, -4):
        with pytest.raises(IndexError):
            examples[index]

    import grain

    assert [grain.MapDataset.source(copy)[i] for i in range(3)] == expected


def test_generated_examples_are_those_of_the_generator(tmp_path):
    from mgie_jax.data.generate import EditPairs
    from mgie_jax.data.photos import load as load_photos

    photo_folder(tmp_path / "photos")
    build("generated", tmp_path / "photos", tmp_path / "out", splits=["train"], examples=3, size=32, seed=5)
    pairs = EditPairs(list(load_photos(tmp_path / "photos", "train").values()), seed=5, size=32)
    examples = load(tmp_path / "out")
    assert len(examples) == 3
    for index, example in enumerate(examples):
        made = pairs.example(index)
        assert (np.asarray(Image.open(io.BytesIO(example.source))) == made.source).all()
        assert (np.asarray(Image.open(io.BytesIO(example.target))) == made.target).all()
        assert (example.instruction, example.expressive) == (made.instruction, made.expressive)


def photo_folder(root):
    index = []
    for number, split in enumerate(("train", "train", "heldout")):
        write(root / f"{number}.jpg", picture(number, size=(140, 130)))
        index.append({"name": f"{number}.jpg", "origin": f"{number}", "size": [140, 130], "split": split})
    write(root / "index.json", index)


SHARED = "shard-00/0000145/prompt.json"
BREAKS = {
    "cut short": ("0000132_5_0", "before", lambda root: write(root / "0000132/5_0.jpg", picture(5)[:-200])),
    "no picture": ("0000132_5_0", "after", lambda root: write(root / "0000132/5_1.jpg", b"not a picture")),
    "without after": ("0000132_5_0", "no such file", lambda root: (root / "0000132/5_1.jpg").unlink()),
    "without before": ("0000132_5_0", "no such file", lambda root: (root / "0000132/5_0.jpg").unlink()),
    "empty": ("0000145_7_0", "empty", lambda root: write(root / SHARED, {"edit": " \n"})),
    "long": ("0000145_7_0", "1001", lambda root: write(root / SHARED, {"edit": "x" * (MAX_CHARACTERS + 1)})),
    "not Unicode": ("0000145_7_0", "Unicode", lambda root: write(root / SHARED, b'{"edit": "\\ud800"}')),
    "a number": ("0000145_7_0", "not a text", lambda root: write(root / SHARED, {"edit": 3})),
    "no JSON": ("0000145_7_0", "JSON", lambda root: write(root / SHARED, b"{")),
}


@pytest.mark.parametrize("damage", BREAKS)
def test_a_broken_example_is_skipped_counted_and_logged(tmp_path, damage):
    broken, words, breaks = BREAKS[damage]
    expected = ipr2pr_folders(tmp_path / "source")["train"]
    breaks(tmp_path / "source")
    built = build("ipr2pr", tmp_path / "source", tmp_path / "out", max_skipped=0.4)
    assert (built.splits, built.skipped) == ({"train": 2}, 1)
    assert built.log == tmp_path / "out" / "ipr2pr" / "skipped.jsonl"
    (line,) = map(json.loads, built.log.read_text().splitlines())
    assert (line["split"], line["id"]) == ("train", broken) and words in line["reason"]
    del expected[broken]
    assert list(load(tmp_path / "out")) == list(expected.values())


def test_too_many_broken_examples_stop_the_build(tmp_path):
    ipr2pr_folders(tmp_path / "source")
    (tmp_path / "source" / "0000132" / "5_1.jpg").unlink()
    with pytest.raises(DataSetError, match=r"1 of 3 .* more than 0\.05 .*0000132_5_0 .*no such file"):
        build("ipr2pr", tmp_path / "source", tmp_path / "out")
    assert os.listdir(tmp_path / "out" / "ipr2pr") == ["skipped.jsonl"]
    with pytest.raises(DataSetError, match="no data set"):
        load(tmp_path / "out")
    # What was logged then is gone once the build succeeds.
    write(tmp_path / "source" / "0000132" / "5_1.jpg", picture(1))
    assert build("ipr2pr", tmp_path / "source", tmp_path / "out").log is None
    assert os.listdir(tmp_path / "out" / "ipr2pr") == ["1.0.0"]


def test_a_split_with_nothing_good_is_an_error(tmp_path):
    ipr2pr_folders(tmp_path / "source")
    for file in (tmp_path / "source").rglob("*.jpg"):
        file.write_bytes(b"")
    with pytest.raises(DataSetError, match="no example of split 'train' is any good"):
        build("ipr2pr", tmp_path / "source", tmp_path / "out", max_skipped=1.0)


def test_an_id_that_occurs_twice_is_skipped_the_second_time(tmp_path):
    expected = ipr2pr_folders(tmp_path / "source")["train"]
    ipr2pr_folders(tmp_path / "source" / "again")
    built = build("ipr2pr", tmp_path / "source", tmp_path / "out", max_skipped=0.5)
    assert built.skipped == 3 and {example.id for example in load(tmp_path / "out")} == set(expected)
    assert "same id" in built.log.read_text()


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/secret.jpg", "a/../../secret.jpg", 3, ""])
def test_names_that_lead_out_of_the_source_are_not_followed(tmp_path, name):
    write(tmp_path / "secret.jpg", picture(0))
    ma5k(tmp_path / "source")
    rows = json.loads((tmp_path / "source/annotations/test_sess_1.json").read_text())
    write(tmp_path / "source/annotations/test_sess_1.json", [*rows, {**rows[0], "input": name}])
    built = build("ma5k", tmp_path / "source", tmp_path / "out", max_skipped=0.5)
    assert built.skipped == 1 and "file" in built.log.read_text()


def test_other_picture_formats_become_png():
    content = picture(3, "WEBP", lossless=True)
    found = examine(Candidate("x", lambda: Pair(content, picture(4), "brighter", "It gets brighter.")))
    assert found["source"].startswith(b"\x89PNG") and found["target"] == picture(4)
    original, kept = (np.asarray(Image.open(io.BytesIO(data))) for data in (content, found["source"]))
    assert (original == kept).all()


def test_pictures_of_few_row_groups_are_held(tmp_path, monkeypatch):
    """A Parquet file is larger than the memory of the machine that reads it."""
    from mgie_jax.data.builders import magicbrush as module

    expected = magicbrush(tmp_path / "source")["train"]
    original = module.parquet.ParquetFile.read_row_group
    read = []

    def counted(file, group, columns):
        read.append((group, tuple(columns)))
        return original(file, group, columns)

    monkeypatch.setattr(module.parquet.ParquetFile, "read_row_group", counted)
    candidates = module.MagicBrush(source=tmp_path / "source", data_dir=tmp_path / "out").candidates()["train"]
    assert all("source_img" not in columns for _, columns in read)
    del read[:]
    assert [candidate.read().target for candidate in candidates] == [example.target for example in expected.values()]
    assert [group for group, _ in read] == [0, 1]


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_a_program_is_refused(tmp_path, protocol):
    ipr2pr_prepared(tmp_path / "source")
    path = tmp_path / "source" / "ipr2pr.pkl"
    path.write_bytes(pickle.dumps({"task": [Malicious(tmp_path / "ran")]}, protocol))
    with pytest.raises(DataSetError, match=r"ipr2pr.pkl.*mkdir"):
        build("ipr2pr", tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out" / "ipr2pr").exists()


def test_plain_pickles_are_read(tmp_path):
    plain = {"a": [1, 2.5, None, True, (b"x", "\u00fc"), {1: {2}}], "big": 2**70}
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(plain))
    assert read_pickle(tmp_path / "plain.pkl") == plain
    for content in (b"", b"\x80\x04", pickle.dumps(plain)[:-3], pickle.dumps(np.float64(3)), b"\x80\x04cos\nsystem\n."):
        (tmp_path / "plain.pkl").write_bytes(content)
        with pytest.raises(DataSetError, match="plain.pkl"):
            read_pickle(tmp_path / "plain.pkl")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda row: row.update(lineidx=1), "no line"),
        (lambda row: row.update(lineidx=-5), "no line"),
        (lambda row: row.update(lineidx=10**9), "no line"),
    ],
)
def test_a_prepared_row_that_points_nowhere_is_skipped(tmp_path, change, words):
    ipr2pr_prepared(tmp_path / "source")
    path = tmp_path / "source" / "ipr2pr.pkl"
    table = pickle.loads(path.read_bytes())
    change(table["task"][1][0])
    path.write_bytes(pickle.dumps(table))
    built = build("ipr2pr", tmp_path / "source", tmp_path / "out", max_skipped=0.5)
    assert built.skipped == 1 and words in built.log.read_text()


WRONG = [
    ("ipr2pr", lambda root: None, "neither ipr2pr.pkl nor folders"),
    ("magicbrush", lambda root: None, "edit_turns.json"),
    ("evr", lambda root: None, "train.json"),
    ("gier", lambda root: None, "GIER.json"),
    ("ma5k", lambda root: None, "FiveK.json"),
    ("generated", lambda root: None, "mgie data photos"),
    ("nothing", lambda root: None, "no data set 'nothing'"),
    ("ma5k", lambda root: write(root / "FiveK.json", b"[{"), "cannot be read as JSON"),
    ("ma5k", lambda root: write(root / "FiveK.json", {}), "should hold a list"),
    ("ma5k", lambda root: write(root / "FiveK.json", [{"input": "a.jpg"}]), "row 0"),
    ("ma5k", lambda root: write(root / "FiveK.json", []), "no examples"),
    ("ipr2pr", lambda root: write(root / "ipr2pr.pkl", pickle.dumps({"task": 3})), "list of lists"),
    ("magicbrush", lambda root: write(root / "train-0.parquet", b"PAR1 nothing"), "Parquet"),
]


@pytest.mark.parametrize("name, lay, words", WRONG)
def test_a_wrong_layout_is_named(tmp_path, name, lay, words):
    (tmp_path / "source").mkdir()
    lay(tmp_path / "source")
    with pytest.raises(DataSetError, match=words):
        build(name, tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


def test_splits_are_chosen_and_unknown_ones_named(tmp_path):
    evr(tmp_path / "source")
    with pytest.raises(DataSetError, match="no split 'dev' of evr; it has train, valid"):
        build("evr", tmp_path / "source", tmp_path / "out", splits=["dev"])
    assert build("evr", tmp_path / "source", tmp_path / "out", splits=["valid"]).splits == {"valid": 3}
    assert len(load(tmp_path / "out")) == 3  # the only one
    with pytest.raises(DataSetError, match="no split 'train'"):
        load(tmp_path / "out", "train")
    with pytest.raises(DataSetError, match="exists already"):
        build("evr", tmp_path / "source", tmp_path / "out")


def _build_and_die(source, out):
    def die(candidate):
        if candidate.id.endswith("_8_0"):
            os.kill(os.getpid(), signal.SIGKILL)
        return examine(candidate)

    base.examine = die
    base._parts = lambda candidates: [candidates[:6], candidates[6:]]
    build("ipr2pr", source, out)


def test_a_killed_build_leaves_nothing_that_loads_and_can_be_repeated(tmp_path):
    expected = ipr2pr_prepared(tmp_path / "source", rows=9)["train"]
    places = (tmp_path / "source", tmp_path / "out")
    child = multiprocessing.get_context("spawn").Process(target=_build_and_die, args=places)
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    (left,) = (tmp_path / "out" / "ipr2pr").iterdir()
    assert any(left.iterdir())  # a shard was there already
    for path in (tmp_path / "out", tmp_path / "out" / "ipr2pr", left):
        with pytest.raises(DataSetError, match="did not end"):
            load(path)
    build("ipr2pr", tmp_path / "source", tmp_path / "out")
    assert list(load(tmp_path / "out")) == list(expected.values()) and not left.exists()


def test_two_builds_do_not_write_the_same_data_set(tmp_path):
    ipr2pr_folders(tmp_path / "source")

    def another(done, total):
        with pytest.raises(DataSetError, match="another build"):
            build("ipr2pr", tmp_path / "source", tmp_path / "out")

    assert build("ipr2pr", tmp_path / "source", tmp_path / "out", progress=another).splits == {"train": 3}


def test_what_is_no_data_set_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataSetError, match="there is no such folder"):
        load(tmp_path / "absent")
    with pytest.raises(DataSetError, match="is no data set"):
        load(tmp_path / "empty")
    ma5k(tmp_path / "source")
    path = build("ma5k", tmp_path / "source", tmp_path / "out").path
    evr(tmp_path / "source2")
    build("evr", tmp_path / "source2", tmp_path / "out")
    with pytest.raises(DataSetError, match="several data sets"):
        load(tmp_path / "out")
    shard = next(path.glob("*array_record*"))
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(DataSetError, match="missing"):
        load(path)
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataSetError, match="bytes"):
        load(path)
    middle = content.index(b"\xff\xd8\xff") + 300
    shard.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(DataSetError, match="example 0 .* cannot be read"):
        load(path)[0]
    shard.write_bytes(content)
    assert len(load(path)) == 2
    (path / "features.json").write_text("{}")
    with pytest.raises(DataSetError, match="build it again"):
        load(path)
    (path / "dataset_info.json").write_text("{")
    with pytest.raises(DataSetError, match="build it again"):
        load(path)


def test_the_command_knows_every_builder():
    assert tuple(BUILDERS) == NAMES
