"""Weights files: what is written is what others read, and both ways no more than a part is in memory."""

import json
import weakref

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from mgie_jax.weights import safetensors_files
from mgie_jax.weights.tensors import ModelDirError, open_tensors, read_tensors, write_tensors
from mgie_jax.weights.torch_files import save_pickled
from tests.weights.bits import assert_bits, bits_of, every_dtype, random_bits


@pytest.fixture
def tensors():
    return every_dtype()


@pytest.mark.parametrize("shard_bytes", [10**9, 200])
def test_what_is_written_is_read_bit_for_bit(tensors, tmp_path, shard_bytes):
    sums = write_tensors(tmp_path, "model", tensors.items(), shard_bytes=shard_bytes)
    assert sorted(sums) == sorted(path.name for path in tmp_path.iterdir())
    assert len(sums) == 1 or len(sums) > 5
    for read in (read_tensors(tmp_path, "model"), open_tensors(tmp_path)):
        assert read.keys() == tensors.keys()
        for key, value in tensors.items():
            assert read[key].nbytes == value.nbytes
            assert_bits(read[key], value)


def test_the_safetensors_library_reads_ours(tensors, tmp_path):
    write_tensors(tmp_path, "model", tensors.items())
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    for key, value in safetensors.torch.load_file(tmp_path / "model.safetensors").items():
        assert str(value.dtype) == f"torch.{tensors[key].dtype.name}" and value.shape == tensors[key].shape
        assert bits_of(value) == tensors[key].tobytes()


def test_ours_reads_the_safetensors_librarys(tensors, tmp_path):
    state = {key: torch.from_numpy(value.copy()) for key, value in tensors.items() if value.dtype.isbuiltin == 1}
    state |= {"half.weight": torch.randn(4, 3).to(torch.bfloat16), "eighth": torch.randn(6).to(torch.float8_e4m3fn)}
    safetensors.torch.save_file(state, tmp_path / "any.safetensors")
    read = open_tensors(tmp_path / "any.safetensors")
    assert read.keys() == state.keys()
    for key, value in state.items():
        assert f"torch.{read[key].dtype.name}" == str(value.dtype)
        assert np.asarray(read[key]).tobytes() == bits_of(value)


INDEXES = [
    (slice(None),),
    (slice(1, 3),),
    (slice(None), slice(1, 2)),
    (slice(None), slice(None), slice(2, 4)),
    (slice(4, 5), slice(0, 2), slice(1, 2)),
    (slice(2, 2),),
    (slice(-2, None), slice(None, -1)),
]


@pytest.mark.parametrize("span", [2**20, 2**10, 0])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float8_e4m3fn"])
def test_a_slice_is_what_numpy_says(name, span, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_files._File, "span", span)
    value = random_bits(name, (100, 3, 4))
    write_tensors(tmp_path, "model", [("a", value), ("b", value[::-1])])
    save_pickled(tmp_path / "p.bin", {"a": value, "b": value[::-1]})
    for read in (open_tensors(tmp_path / "model.safetensors"), open_tensors(tmp_path / "p.bin")):
        for index in INDEXES:
            assert_bits(read["a"][index], value[index])
            assert_bits(read["b"][index], value[::-1][index])
        for index in ((slice(None, None, 2),), (slice(None),) * 4):
            with pytest.raises(IndexError, match="slice of step 1"):
                read["a"][index]


def count_bytes(monkeypatch):
    sizes = []
    read = safetensors_files._File.read

    def counted(self, start, into):
        sizes.append(into.nbytes)
        read(self, start, into)

    monkeypatch.setattr(safetensors_files._File, "read", counted)
    return sizes


def test_a_slice_reads_no_more_than_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_files._File, "span", 0)
    write_tensors(tmp_path, "model", [("a", np.zeros((64, 32), np.float32))])
    sizes = count_bytes(monkeypatch)
    tensor = open_tensors(tmp_path)["a"]
    header = sum(sizes)
    assert header < 300
    tensor[8:16]
    assert sum(sizes) - header == 8 * 32 * 4
    tensor[:, 4:8]
    assert sum(sizes) - header == 8 * 32 * 4 + 64 * 4 * 4


class Watched:
    """A tensor that is made when it is sliced, and counts how much of all its kind is alive at once."""

    alive = most = 0

    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, np.dtype(dtype)

    def __getitem__(self, index):
        part = np.full(self.shape, 1.5, self.dtype)[index].copy()
        Watched.alive += part.nbytes
        Watched.most = max(Watched.most, Watched.alive)
        weakref.finalize(part, self._gone, part.nbytes)
        return part

    @classmethod
    def _gone(cls, nbytes):
        cls.alive -= nbytes


@pytest.mark.parametrize("dtype", [None, np.float16])
def test_writing_holds_a_few_blocks_of_one_tensor(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(safetensors_files, "BLOCK", 2**12)
    Watched.alive = Watched.most = 0
    named = [(f"{i}", Watched((256, 64), np.float32)) for i in range(9)]
    progress = []
    write_tensors(tmp_path, "model", named, dtype, shard_bytes=200_000, progress=progress.append)
    assert Watched.most <= 4 * 2**12, "the block that is written, one being hashed, and their making"
    itemsize = 4 if dtype is None else 2
    assert progress == [256 * 64 * itemsize] * 9
    assert all((np.asarray(t) == 1.5).all() for t in open_tensors(tmp_path).values())


def test_floats_are_cast_and_integers_kept(tmp_path):
    value = np.float32([1.0, 1 + 2**-11, 1 + 3 * 2**-9, -0.0, np.inf, 1e-40])
    write_tensors(tmp_path, "model", [("f", value), ("i", np.arange(3))], ml_dtypes.bfloat16)
    read = open_tensors(tmp_path)
    assert np.asarray(read["f"]).tobytes() == bits_of(torch.from_numpy(value).to(torch.bfloat16))
    assert read["i"].dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.float8_e4m3fn])
def test_a_number_too_large_for_the_dtype_is_refused(tmp_path, dtype):
    with pytest.raises(ModelDirError, match="big.weight: 70000 is beyond float.*bfloat16"):
        write_tensors(tmp_path, "model", [("big.weight", np.float32([1, 70000]))], dtype)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_nothing_that_opens(tmp_path):
    class Killed(BaseException):
        pass

    def kill_after(count):
        def progress(nbytes, seen=[0]):  # noqa: B006
            seen[0] += 1
            if seen[0] > count:
                raise Killed

        return progress

    named = [(f"{i}", np.full(100, i, np.float32)) for i in range(5)]
    for count in range(5):
        folder = tmp_path / str(count)
        folder.mkdir()
        with pytest.raises(Killed):
            write_tensors(folder, "model", named, shard_bytes=900, progress=kill_after(count))
        with pytest.raises(ModelDirError):
            open_tensors(folder)


def test_one_folder_has_one_model(tmp_path):
    write_tensors(tmp_path, "model", [("a", np.zeros(3))])
    with pytest.raises(ModelDirError, match=r"holds weights already \(model.safetensors\)"):
        write_tensors(tmp_path, "model", [("a", np.zeros(3))])
    with pytest.raises(ModelDirError, match="a is there twice"):
        write_tensors(tmp_path, "other", [("a", np.zeros(3)), ("a", np.zeros(3))])
    with pytest.raises(ModelDirError, match="no dtype complex64"):
        write_tensors(tmp_path, "other", [("a", np.zeros(3, np.complex64))])


def test_a_folder_is_opened_as_what_it_holds(tmp_path):
    with pytest.raises(ModelDirError, match="cannot tell .*found none"):
        open_tensors(tmp_path)
    torch.save({"x": torch.ones(1)}, tmp_path / "mllm.pt")
    assert open_tensors(tmp_path).keys() == {"x"}
    torch.save({"y": torch.ones(1)}, tmp_path / "unet.pt")
    with pytest.raises(ModelDirError, match="found mllm.pt, unet.pt"):
        open_tensors(tmp_path)
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.ones(1)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    assert open_tensors(tmp_path).keys() == {"a", "b"}
    weight_map = {"a": "pytorch_model-00001-of-00002.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert open_tensors(tmp_path).keys() == {"a"}
    write_tensors(tmp_path, "model", [("z", np.zeros(1))])
    assert open_tensors(tmp_path).keys() == {"z"}


def test_a_path_that_is_nothing_is_named(tmp_path):
    with pytest.raises(ModelDirError, match="nowhere is missing"):
        open_tensors(tmp_path / "nowhere")
    with pytest.raises(ModelDirError, match="x.safetensors is missing"):
        open_tensors(tmp_path / "x.safetensors")
    with pytest.raises(ModelDirError, match="x.bin is missing"):
        open_tensors(tmp_path / "x.bin")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(ModelDirError, match="x.txt is no weights file"):
        open_tensors(tmp_path / "x.txt")
