"""PyTorch's own files: read bit for bit, mapped in turns, and never run."""

import sys

import numpy as np
import pytest
import torch

from mgie_jax.weights import torch_files
from mgie_jax.weights.tensors import ModelDirError, open_tensors
from mgie_jax.weights.torch_files import open_pickled, save_pickled
from tests.weights.bits import assert_bits, bits_of, every_dtype


@pytest.fixture
def tensors():
    return every_dtype()


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_are_read_bit_for_bit(tmp_path, zipped):
    state = {
        "w": torch.randn(4, 6),
        "t": torch.randn(4, 6).T,  # not contiguous
        "view": torch.randn(9, 2)[3:5],
        "half": torch.randn(5).half(),
        "b": torch.randn(3, 3).to(torch.bfloat16),
        "i": torch.arange(3),
        "scalar": torch.tensor(2.5),
    }
    if zipped:  # the old format has no float8
        state["f8"] = torch.randn(6).to(torch.float8_e5m2)
    checkpoint = {"state_dict": torch.nn.ParameterDict({}).state_dict() | state, "epoch": 3, "name": "x"}
    torch.save(checkpoint, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
    read = open_tensors(tmp_path / "x.ckpt")
    assert read.keys() == state.keys()
    for key, value in state.items():
        assert (read[key].shape, f"torch.{read[key].dtype}") == (tuple(value.shape), str(value.dtype))
        assert np.asarray(read[key]).tobytes() == bits_of(value.contiguous())
    assert_bits(read["t"][1:3, 2:], state["t"].numpy()[1:3, 2:])


def test_torch_reads_ours(tensors, tmp_path):
    save_pickled(tmp_path / "out.pt", tensors)
    state = torch.load(tmp_path / "out.pt", weights_only=True)
    assert state.keys() == tensors.keys()
    for key, value in state.items():
        assert (str(value.dtype), tuple(value.shape)) == (f"torch.{tensors[key].dtype}", tensors[key].shape)
        assert bits_of(value) == tensors[key].tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out.pt"]
    for key, value in open_pickled(tmp_path / "out.pt").items():
        assert_bits(value, tensors[key])


def test_a_mapping_does_not_grow_without_end(tmp_path, monkeypatch):
    torch.save({f"{i}": torch.full((100,), float(i)) for i in range(9)}, tmp_path / "x.pt")
    maps, load = [], torch_files._load
    monkeypatch.setattr(torch_files, "_MAPPED_BYTES", 1000)
    monkeypatch.setattr(torch_files, "_load", lambda path: maps.append(path) or load(path))
    read = open_pickled(tmp_path / "x.pt")
    assert [float(np.asarray(tensor)[0]) for tensor in read.values()] == list(range(9))
    assert len(maps) == 5, "two tensors of 400 bytes a mapping"


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch ran",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(2), "x": Evil()}, "evil.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelDirError, match=r"evil.bin is refused: it would run (posix|nt)\.system"):
        open_tensors(tmp_path / "evil.bin")
    assert not (tmp_path / "ran").exists()


def test_what_is_no_state_dict_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    for content, words in (
        ([torch.ones(1)], "holds a list"),
        ({"a": 1}, "holds no tensors"),
        ({"s": torch.eye(3).to_sparse()}, "s is no dense tensor"),
        ({"e": torch.ones(1).expand(10**12)}, "e .* is larger than its data"),
    ):
        torch.save(content, path)
        with pytest.raises(ModelDirError, match=f"x.pt.*{words}"):
            open_tensors(path)
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ModelDirError, match="not a whole PyTorch file"):
        open_tensors(path)


def test_without_torch_the_remedy_is_named(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModelDirError, match=r"pip install 'mgie_jax\[torch\]'"):
        open_tensors(tmp_path / "x.pt")
