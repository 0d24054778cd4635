"""Paths, local and in a bucket: one spelling, one behaviour, and writes that are there whole or not at all."""

import os
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from mgie_jax import cli, paths
from mgie_jax.paths import PathError, absolute, entry, files, is_remote, is_within, move, remove, to_path
from mgie_jax.photo import PhotoError, check_writable, open_photo, save_atomic
from mgie_jax.weights import atomic
from mgie_jax.weights.atomic import WRITING, is_there, new_folder, publish, sha256, write_text, writing
from mgie_jax.weights.tensor import ModelDirError


@pytest.fixture(params=["local", "bucket"])
def place(request, tmp_path):
    """A folder of either kind."""
    return tmp_path if request.param == "local" else request.getfixturevalue("bucket") / "a"


@pytest.mark.parametrize("text", ["a/b", "/a/b", ".", "gs:/a", "C:x"])
def test_local_paths_are_pathlibs(text):
    assert type(to_path(text)) is type(Path(text)) and to_path(text) == Path(text) and not is_remote(text)
    assert absolute(text) == Path(text).absolute()


def test_a_bucket_is_spelled_the_same_all_the_way(bucket):
    path = to_path(f"{bucket}/a//b")
    assert str(path) == os.fspath(path) == f"{bucket}/a/b" and is_remote(path) and isinstance(path, PurePosixPath)
    assert absolute(path) == to_path(str(path)) == to_path(path) == path and str(path.parent.parent) == str(bucket)


@pytest.mark.parametrize(
    ("text", "words"), [("s3://a/b", "only local paths and gs://"), ("https://a", "only local"), ("gs://", "no bucket")]
)
def test_other_addresses_are_refused(text, words, capsys):
    with pytest.raises(PathError, match=words):
        to_path(text)
    assert cli.main(["export", text, "out"]) == 2
    assert words in capsys.readouterr().err


def test_without_gcsfs_the_remedy_is_named(monkeypatch, capsys):
    monkeypatch.setattr(paths, "_reads_buckets", lambda: False)
    for command in (["export", "gs://a/b", "out"], ["train", "--config", "c.py", "--workdir", "gs://a/b"],
                    ["edit", "gs://a/b.png", "brighter"], ["convert", "check", "gs://a/b"]):  # fmt: skip
        assert cli.main(command) == 2
        assert "pip install 'mgie_jax[gcs]'" in capsys.readouterr().err


def test_files_of_a_folder(place):
    for name in ("b.txt", "c/d.txt", "c/e/f.txt", "c-1.txt"):
        paths.make_folder((place / name).parent)
        (place / name).write_text(name)
    found = files(place)
    assert list(found) == ["b.txt", "c/d.txt", "c/e/f.txt", "c-1.txt"]
    assert {name: one.size for name, one in found.items()} == {name: len(name) for name in found}
    assert found["b.txt"] == entry(place / "b.txt")
    os.utime(place / "b.txt", ns=(1, 1)) if not is_remote(place) else (place / "b.txt").write_text("B.txt")
    assert entry(place / "b.txt") != found["b.txt"]
    with pytest.raises(FileNotFoundError):
        entry(place / "nothing")
    move(place / "c", place / "g")
    assert list(files(place)) == ["b.txt", "c-1.txt", "g/d.txt", "g/e/f.txt"]
    assert is_within(place / "g", place) and is_within(place, place) and not is_within(place, place / "g")
    remove(place / "g")
    remove(place / "g")
    assert list(files(place)) == ["b.txt", "c-1.txt"]


@pytest.mark.parametrize("size", [0, 5, 2**20 + 3])
def test_a_file_is_written_whole_or_not_at_all(place, size, monkeypatch):
    monkeypatch.setattr(atomic, "WRITE_BLOCK", 2**18)
    data = np.random.default_rng(size).bytes(size)
    for content in (data, data[::-1]):
        with writing(place / "file") as file:
            file.write(content)
        assert (place / "file").read_bytes() == content
    for name in ("file", "other"):
        with pytest.raises(RuntimeError), writing(place / name) as file:
            file.write(b"x" * size)
            raise RuntimeError
    assert list(files(place)) == ["file"] and (place / "file").read_bytes() == data[::-1]
    assert write_text(place / "text", "\u00e9\n") == sha256(place / "text")
    assert (place / "text").read_bytes() == b"\xc3\xa9\n"


def fill(folder, content: str, stop_before: str = ""):
    for name in ("one", "two", "marker"):
        if name == stop_before:
            raise RuntimeError
        write_text(folder / name, content)


def test_a_folder_is_there_whole_or_not_at_all(place):
    out = place / "out"
    with new_folder(out, "marker") as new:
        fill(new, "first")
    with pytest.raises(ModelDirError, match="exists already"), new_folder(out, "marker"):
        pass
    with new_folder(out, "marker", overwrite=True) as new:
        fill(new, "second")
    assert {name: (place / name).read_text() for name in files(place)} == dict.fromkeys(
        ["out/marker", "out/one", "out/two"], "second"
    )
    with pytest.raises(RuntimeError), new_folder(place / "third", "marker") as new:
        fill(new, "third", stop_before="marker")
    assert [name for name in files(place) if "third" in name] == []


@pytest.mark.parametrize("stop_before", ["one", "two", "marker"])
def test_what_a_killed_writer_left_in_a_bucket_is_nothing_and_is_replaced(bucket, stop_before, monkeypatch):
    out = bucket / "out"
    with new_folder(out, "marker") as new:
        fill(new, "old")
    removed = []
    with monkeypatch.context() as patch:
        # A killed process tidies nothing up: it removes what was there, and no more.
        patch.setattr(atomic, "remove", lambda path: removed.append(path) or len(removed) > 1 or remove(path))
        with pytest.raises(RuntimeError), new_folder(out, "marker", overwrite=True) as new:
            fill(new, "new", stop_before)
    assert (out / WRITING).exists() and not (out / "marker").exists() and not is_there(out, "marker")
    with new_folder(out, "marker") as new:
        fill(new, "last")
    assert list(files(out)) == ["marker", "one", "two"] and (out / "one").read_text() == "last"


def test_a_folder_of_something_else_is_never_taken_for_one(bucket):
    (bucket / "out" / "holiday.jpg").write_bytes(b"photo")
    with pytest.raises(ModelDirError, match="exists already"), new_folder(bucket / "out", "marker"):
        pass
    assert (bucket / "out" / "holiday.jpg").exists()


def test_a_local_folder_is_published(bucket, tmp_path):
    for name in ("marker", "a/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    publish(tmp_path, bucket / "x", "marker")
    assert list(files(bucket / "x")) == ["a/b", "marker"] and (bucket / "x/a/b").read_text() == "a/b"


def test_photos(bucket, fake_gcs):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    check_writable(bucket / "photo.png")
    save_atomic(photo, bucket / "photo.png")
    assert np.array_equal(open_photo(str(bucket / "photo.png")), photo)
    with pytest.raises(PhotoError, match="gs://.*no such file"):
        open_photo(bucket / "none.png")
    with pytest.raises(PhotoError, match="unknown format"):
        check_writable(bucket / "photo.xyz")
    fake_gcs.refuse = lambda method, path: True
    with pytest.raises(PhotoError, match="cannot be read"):
        open_photo(bucket / "photo.png")
