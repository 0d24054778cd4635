"""Weights on `gs://`: the same numbers and files as on disk."""

import json
import re

import jax
import numpy as np
import pytest

import mgie_jax
from mgie_jax import cli
from mgie_jax.models import presets
from mgie_jax.weights import bucket_files
from mgie_jax.weights.bucket_files import BucketFile
from mgie_jax.weights.files import INDEX, load_model_dir, save_model_dir
from mgie_jax.weights.rules import LazyLeaf, leaves, sharded
from mgie_jax.weights.safetensors_files import open_safetensors, write_safetensors
from mgie_jax.weights.tensor import ModelDirError
from tests.gcs.same import assert_same, bytes_of


def test_a_model_directory_is_written_and_read(bucket, tiny_params, tiny_tokenizer_dir, tiny_model_dir, fake_gcs,
                                               capsys):  # fmt: skip
    save_model_dir(bucket / "tiny", presets.test(), tiny_params, tiny_tokenizer_dir)
    assert bytes_of(bucket / "tiny") == bytes_of(tiny_model_dir)
    fake_gcs.requests.clear()
    assert_same(load_model_dir(bucket / "tiny"), load_model_dir(tiny_model_dir))
    read = [found for _, path, found in fake_gcs.requests if ".safetensors?alt=media" in path]
    assert read and all(re.fullmatch(r"bytes=\d+-\d+", found) for found in read), "weights are read by parts"
    assert mgie_jax.load(str(bucket / "tiny")).config == presets.test()
    assert cli.main(["convert", "check", str(bucket / "tiny"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verified"] is True
    with pytest.raises(ModelDirError, match="exists already"):
        save_model_dir(bucket / "tiny", presets.test(), tiny_params, tiny_tokenizer_dir)
    save_model_dir(bucket / "tiny", presets.test(), tiny_params, tiny_tokenizer_dir, "float16", overwrite=True)
    assert (bucket / "tiny" / INDEX).exists()
    with pytest.raises(ModelDirError, match="gs://.*no model_index.json"):
        load_model_dir(bucket / "tiny" / "unet")
    with pytest.raises(ModelDirError, match="gs://.*is not a folder"):
        load_model_dir(bucket / "none")
    assert cli.main(["convert", "check", str(bucket / "none")]) == 2
    assert "there is no such folder or file" in capsys.readouterr().err


def test_only_what_is_asked_for_is_fetched(bucket, fake_gcs, monkeypatch):
    values = np.arange(4096 * 64, dtype=np.float32).reshape(4096, 64)
    write_safetensors(bucket / "x.safetensors", {"x": (values, values.dtype)})

    def fetched():
        spans = [re.fullmatch(r"bytes=(\d+)-(\d+)", found) for _, _, found in fake_gcs.requests]
        fake_gcs.requests.clear()
        return sum(int(span[2]) - int(span[1]) + 1 for span in spans if span)

    tensor = open_safetensors(bucket / "x.safetensors")["x"]
    assert fetched() < 1000
    np.testing.assert_array_equal(tensor[1024:2048], values[1024:2048])
    assert fetched() == values.nbytes // 4
    # Of columns whole rows are fetched, but those once, by as many requests as make a span.
    monkeypatch.setattr(BucketFile, "span", 2**18)
    np.testing.assert_array_equal(tensor[2048:, 8:16], values[2048:, 8:16])
    assert len(fake_gcs.requests) == 2 and fetched() == values.nbytes // 2
    monkeypatch.setattr(bucket_files, "PARTS", 3)
    np.testing.assert_array_equal(np.asarray(tensor), values)
    (bucket / "x.safetensors").write_bytes(b"another one")
    with pytest.raises(ModelDirError, match="replaced while it was read"):
        tensor[:1]


def test_devices_that_share_a_file_share_its_reading(bucket, fake_gcs):
    """A host fetches what its devices hold of a parameter at once, and only that."""
    kernel = np.random.default_rng(0).standard_normal((64, 96), np.float32)  # PyTorch's: (out, in)
    write_safetensors(bucket / "x.safetensors", {"k.weight": (kernel, kernel.dtype)})
    tensor = open_safetensors(bucket / "x.safetensors")["k.weight"]
    ((leaf, _),) = leaves({"k": {"kernel": np.empty((96, 64), np.float32)}})
    lazy = LazyLeaf((96, 64), np.dtype(np.float32), leaf, (tensor,))
    asked = []

    class Half:
        """Rows 0-15 and 16-31 of PyTorch's 64, of the columns all: what one of two hosts holds."""

        def addressable_devices_indices_map(self, shape):
            device = jax.devices()[0]
            return {device: (slice(None), slice(0, 16)), _Other(device): (slice(None), slice(16, 32))}

    class _Other:
        def __init__(self, device):
            self.device = device

    def put(part, device):
        asked.append(np.array(part))
        return jax.numpy.asarray(part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_put", put)
        patch.setattr(jax, "make_array_from_single_device_arrays", lambda shape, sharding, arrays: arrays[0])
        fake_gcs.requests.clear()
        sharded(lambda path, shape: Half())(("k", "kernel"), lazy)
    np.testing.assert_array_equal(np.concatenate(asked, 1), kernel.T[:, :32])
    ((_, _, span),) = fake_gcs.requests
    first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", span).groups())
    assert last - first + 1 == kernel.nbytes // 2


def test_pickles_are_refused_with_the_remedy(bucket, capsys):
    (bucket / "sd.ckpt").write_bytes(b"PK")
    assert cli.main(["convert", "from-ldm", str(bucket / "sd.ckpt"), str(bucket / "out")]) == 2
    assert "copy it to a local folder" in capsys.readouterr().err


def test_pytorchs_files_are_written(bucket, tiny_model_dir, tmp_path, capsys):
    for out in (bucket / "pt", tmp_path / "pt"):
        assert cli.main(["convert", "to-official", str(tiny_model_dir), str(out)]) == 0, capsys.readouterr().err
    assert bytes_of(bucket / "pt") == bytes_of(tmp_path / "pt")
