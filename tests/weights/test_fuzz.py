"""Flipped bytes in every format: a clean error or a load, and never a wrong load that `check` calls good."""

import json
import random
import shutil

import ml_dtypes
import numpy as np
import pytest
import torch

from mgie_jax.models import presets
from mgie_jax.weights.check import check
from mgie_jax.weights.files import load_model_dir, load_tokenizer, save_model_dir
from mgie_jax.weights.tensors import ModelDirError, open_tensors, write_tensors
from mgie_jax.weights.torch_files import save_pickled

RNG = np.random.default_rng(0)
TENSORS = {
    "a.weight": RNG.standard_normal((3, 4)).astype(np.float32),
    "layers.0.b": RNG.standard_normal(5).astype(np.float16),
    "c": RNG.standard_normal((2, 2)).astype(ml_dtypes.bfloat16),
    "scalar": np.float32([3])[0, ...],
    "index": np.arange(3),
}


def damage(rng, raw):
    """A few bytes flipped, replaced, taken out or put in, or the end cut off; half of the time near the beginning."""
    raw = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        if not raw:
            break
        i = rng.randrange(len(raw) if rng.random() < 0.5 else min(len(raw), 600))
        how = rng.random()
        if how < 0.7:
            raw[i] ^= 1 << rng.randrange(8)
        elif how < 0.85:
            raw[i] = rng.choice(b'0123456789"{}[],.-\0\xff')
        elif how < 0.9:
            del raw[i : i + rng.randrange(1, 9)]
        elif how < 0.95:
            raw[i:i] = rng.randbytes(4)
        else:
            del raw[i:]
    return bytes(raw)


def pickled(folder, zipped):
    state = {"state_dict": {key: torch.ones(value.shape) for key, value in TENSORS.items()}, "epoch": 3}
    torch.save(state, folder / "x.ckpt", _use_new_zipfile_serialization=zipped)


FORMATS = {
    "whole": lambda folder: write_tensors(folder, "model", TENSORS.items()),
    "sharded": lambda folder: write_tensors(folder, "model", TENSORS.items(), shard_bytes=30),
    "bin": lambda folder: save_pickled(folder / "pytorch_model.bin", TENSORS),
    "ckpt": lambda folder: pickled(folder, zipped=True),
    "before torch 1.6": lambda folder: pickled(folder, zipped=False),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_weights_are_refused_or_read(tmp_path, kind):
    FORMATS[kind](tmp_path)
    files = sorted(tmp_path.iterdir())
    rng, refused = random.Random(kind), 0
    for _ in range(120):
        file = rng.choice(files)
        raw = file.read_bytes()
        file.write_bytes(damage(rng, raw))
        try:
            for tensor in open_tensors(tmp_path).values():
                assert np.asarray(tensor).nbytes == tensor.nbytes
        except ModelDirError as error:
            refused += 1
            assert str(tmp_path) in str(error).encode().decode()
        file.write_bytes(raw)
    assert 40 < refused < 120
    open_tensors(tmp_path)


@pytest.fixture(scope="module")
def sharded_dir(tmp_path_factory, tiny_params, tiny_tokenizer_dir):
    path = tmp_path_factory.mktemp("fuzz") / "model"
    save_model_dir(path, presets.test(), tiny_params, tiny_tokenizer_dir, shard_bytes=400_000)
    return path


@pytest.mark.parametrize(
    ("pattern", "cases"),
    [("*/*.safetensors", 14), ("*/*.index.json", 8), ("*/*config.json", 10), ("model_index.json", 5),
     ("tokenizer/*.json", 14), ("SHA256SUMS", 8)],
)  # fmt: skip
def test_check_never_calls_a_damaged_model_good(sharded_dir, pattern, cases):
    """And says that it loads exactly where it does."""
    files = sorted(sharded_dir.glob(pattern))
    assert files
    rng = random.Random(pattern)
    for _ in range(cases):
        file = rng.choice(files)
        raw = file.read_bytes()
        bad = damage(rng, raw)
        while bad == raw:
            bad = damage(rng, raw)
        file.write_bytes(bad)
        report = check(sharded_dir)
        assert not report.good and report.verified is False and report.problems, file
        str(report).encode(), json.dumps(report.to_json(), allow_nan=False)
        try:
            config, _ = load_model_dir(sharded_dir, place=lambda path, leaf: np.asarray(leaf))
            load_tokenizer(sharded_dir, config)
            loads = True
        except ModelDirError:
            loads = False
        assert report.loads == loads, (file, report.problems)
        file.write_bytes(raw)


def test_nothing_was_left_damaged(sharded_dir):
    assert check(sharded_dir).good
    shutil.rmtree(sharded_dir)
