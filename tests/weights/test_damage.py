"""Safetensors that lie, are damaged, or do not fit together: refused, with the file and the key."""

import json
import shutil
import struct

import numpy as np
import pytest
import safetensors.numpy

from mgie_jax.weights.safetensors_files import open_safetensors
from mgie_jax.weights.tensors import ModelDirError, open_tensors, read_tensors, write_tensors


def craft(path, header, data=b"\0" * 24):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LIES = {
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12)), "c": entry(offsets=(12, 24), shape=(3,))}, "'b' begins"),
    "hole": ({"a": entry(), "b": entry(offsets=(16, 24))}, "'b' begins at 16"),
    "late start": ({"a": entry(offsets=(16, 24))}, "'a' begins at 16"),
    "data left over": ({"a": entry()}, "its tensors end at"),
    "beyond the end": ({"a": entry(shape=(8,), offsets=(0, 32))}, "its tensors end at"),
    "wrong length": ({"a": entry(shape=(5,), offsets=(0, 24))}, "'a': .*not the 24 bytes"),
    "backwards": ({"a": entry(offsets=(24, 0))}, "'a'"),
    "negative": ({"a": entry(shape=(-2, -3), offsets=(0, 24))}, r"'a': \[-2, -3\] is no list of sizes"),
    "shape of floats": ({"a": entry(shape=(6.0,), offsets=(0, 24))}, "'a'"),
    "shape of bools": ({"a": entry(shape=(True, 6), offsets=(0, 24))}, "'a'"),
    "endless shape": ({"a": entry(shape=(0, 2**60), offsets=(0, 0))}, "'a'"),
    "unknown dtype": ({"a": entry("Q4", (6,), (0, 24))}, "'a': dtype 'Q4' is not supported"),
    "dtype of another type": ({"a": entry(["F32"], (6,), (0, 24))}, "'a': dtype"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [6]}}, "'a': expected dtype, shape and data_offsets"),
    "no entry": ({"a": 3}, "'a': expected"),
    "twice": (b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},'
              b'"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}}', "'a' appears twice"),
    "metadata": ({"__metadata__": {"format": 3}, "a": entry(shape=(6,), offsets=(0, 24))}, "__metadata__"),
    "no object": (b"[1, 2]", "no JSON object"),
    "no JSON": (b"{,}", "no JSON object"),
    "deep": (b'{"a":' + b"[" * 90_000, "nests too deeply"),
    "no text": (b"\xff\xfe", "no JSON object"),
    "unprintable key": ({"a\ud800": entry(shape=(6,), offsets=(0, 24))}, "no printable key"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused(tmp_path, lie):
    header, words = LIES[lie]
    craft(tmp_path / "model.safetensors", header)
    with pytest.raises(ModelDirError, match=f"model.safetensors is not a whole safetensors file .*{words}") as caught:
        open_tensors(tmp_path)
    str(caught.value).encode()  # it can be printed


def test_a_huge_header_is_not_read(tmp_path):
    path = tmp_path / "model.safetensors"
    for claimed in (2**63, 10**9, 100):
        path.write_bytes(struct.pack("<Q", claimed) + b"{}")
        with pytest.raises(ModelDirError, match=f"its header claims {claimed} bytes of 10"):
            open_safetensors(path)
    for size in (0, 7):
        path.write_bytes(b"\1" * size)
        with pytest.raises(ModelDirError, match=f"it has {size} bytes"):
            open_safetensors(path)


def test_a_file_cut_while_it_is_read_is_refused(tmp_path):
    write_tensors(tmp_path, "model", [("a", np.zeros(1000))])
    tensor = open_tensors(tmp_path)["a"]
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.truncate(500)
    with pytest.raises(ModelDirError, match="cut short while it was read"):
        np.asarray(tensor)


# Shards and their index.


@pytest.fixture
def sharded(tmp_path):
    write_tensors(tmp_path, "model", [(f"{i}.weight", np.full(10, i, np.float32)) for i in range(4)], shard_bytes=80)
    assert len(list(tmp_path.iterdir())) == 3
    return tmp_path


def edit_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def rewrite(path, *keys):
    path.unlink()
    safetensors.numpy.save_file({key: np.zeros(10, np.float32) for key in keys}, path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / SECOND).unlink(), f"{SECOND} is missing"),
        (lambda d: edit_index(d, lambda m: m.pop("3.weight")), rf"index.json does not name .*3.weight \({SECOND}\)"),
        (lambda d: edit_index(d, lambda m: m.update(ghost=FIRST)), rf"not in their files: 'ghost' \({FIRST}\)"),
        (lambda d: edit_index(d, lambda m: m.update({"0.weight": "x.safetensors"})), "x.safetensors is missing"),
        (lambda d: edit_index(d, lambda m: m.update({"0.weight": SECOND})), rf"wrong files for: 0.weight \(in {FIRST}"),
        (lambda d: edit_index(d, lambda m: m.update({"0.weight": "../a.safetensors"})), "outside its folder"),
        (lambda d: edit_index(d, lambda m: m.update({"0.weight": "a\0.safetensors"})), "outside its folder"),
        (lambda d: edit_index(d, lambda m: m.update({"0.weight": "x.bin"})), "not .safetensors: x.bin"),
        (lambda d: edit_index(d, lambda m: m.update({"0.weight": 3})), "no weight_map"),
        (lambda d: edit_index(d, lambda m: m.clear()), "no weight_map"),
        (lambda d: rewrite(d / SECOND, "0.weight", "3.weight"), f"{FIRST} and {SECOND} both hold 0.weight"),
        (lambda d: rewrite(d / SECOND, "2.weight", "3.weight", "4.weight"), r"does not name .*4.weight"),
        (lambda d: shutil.copy(d / FIRST, d / SECOND), "both hold 0.weight, 1.weight"),
        (lambda d: (d / "model.safetensors.index.json").write_text("[]"), "must hold a JSON object, found list"),
    ],
)
def test_an_index_and_its_shards_must_agree(sharded, damage, words):
    damage(sharded)
    for read in (lambda: read_tensors(sharded, "model"), lambda: open_tensors(sharded)):
        with pytest.raises(ModelDirError, match=words):
            read()


def test_shards_without_an_index_must_be_complete(sharded):
    (sharded / "model.safetensors.index.json").unlink()
    assert len(open_tensors(sharded)) == 4
    shutil.copy(sharded / FIRST, sharded / "model-00003-of-00002.safetensors")
    with pytest.raises(ModelDirError, match="shards beyond"):
        open_tensors(sharded)
    (sharded / "model-00003-of-00002.safetensors").unlink()
    shutil.copy(sharded / FIRST, sharded / "other-00001-of-00001.safetensors")
    with pytest.raises(ModelDirError, match="several sets of shards"):
        open_tensors(sharded)
    (sharded / "other-00001-of-00001.safetensors").unlink()
    (sharded / FIRST).unlink()
    with pytest.raises(ModelDirError, match=f"lacks the shards {FIRST}"):
        open_tensors(sharded)
