"""Everything that takes a path, on `gs://`: the same numbers and files as on disk."""

import json
import os
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import mgie_jax
from mgie_jax import cli
from mgie_jax.cli.train import read_config
from mgie_jax.data import parts
from mgie_jax.data.builders.build import build
from mgie_jax.data.photos import load as load_photos
from mgie_jax.data.prepare import fingerprint, finished, prepare
from mgie_jax.data.records import INFO, DataSetError, contents, load
from mgie_jax.models import presets
from mgie_jax.models.mgie import MGIE
from mgie_jax.paths import files
from mgie_jax.sharding import make_mesh
from mgie_jax.train import checkpoint, tasks
from mgie_jax.train.config import default_config
from mgie_jax.train.interrupts import Preempted
from mgie_jax.train.log import Log
from mgie_jax.train.start import write_fresh
from mgie_jax.weights import bucket_files
from mgie_jax.weights.atomic import WRITING, publish
from mgie_jax.weights.bucket_files import BucketFile
from mgie_jax.weights.files import INDEX, load_model_dir, save_model_dir
from mgie_jax.weights.rules import LazyLeaf, leaves, sharded
from mgie_jax.weights.safetensors_files import open_safetensors, write_safetensors
from mgie_jax.weights.tensor import ModelDirError
from tests.data.preparing import Parrot, examples, settings, write
from tests.weights.t5_files import write_t5

ROOT = Path(mgie_jax.__file__).parents[1]


def bytes_of(folder):
    return {name: (folder / name).read_bytes() for name in files(folder)}


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# Weights.


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


# Training.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set to train on."""
    found = [replace(example, expressive=f"It becomes {example.instruction}.") for example in examples(7)]
    return write(tmp_path_factory.mktemp("sets"), {"train": found})


def dataset_in(folder):
    (found,) = folder.rglob(INFO)
    return found.parent


def config(init, data, **changes):
    c = read_config(f"{ROOT}/configs/test.py:mllm", [])
    c.update({"init": str(init), "data": str(data), **changes})
    return c


@pytest.mark.skipif(not (ROOT / "configs").is_dir(), reason="not a source tree")
def test_a_run_in_a_bucket_is_the_run_on_disk(bucket, data, tiny_model_dir, tmp_path, monkeypatch, capsys):
    """Weights, data and work folder in a bucket; stopped, resumed, exported: bit for bit what a local run makes."""
    local = tasks.train(config(tiny_model_dir, data), tmp_path / "run")
    publish(tiny_model_dir, bucket / "tiny", INDEX)
    publish(dataset_in(data), bucket / "data/frogs/1.0.0", INFO)
    c = config(bucket / "tiny", bucket / "data")
    run = bucket / "run"

    write_line = Log.write

    def stop(log, step, rates):
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return write_line(log, step, rates)

    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(Log, "write", stop)
        tasks.train(c, run)
    saved = checkpoint.steps(run)[-1]
    assert saved == 1 and checkpoint.fault(run / f"checkpoints/{saved}/default") is None
    # A save that was killed is no checkpoint, and does not stay.
    (run / "checkpoints/2/default/d/half").write_bytes(b"half")
    assert checkpoint.steps(run)[-1] == saved
    model = tasks.train(c, run)
    assert model == run / "model" and bytes_of(model) == bytes_of(local)
    assert [json.loads(row)["step"] for row in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    names = [name for name in files(run) if not name.startswith(("checkpoints/", "model/"))]
    assert {name.split("/")[0] for name in names} == {"metrics.jsonl", "skipped.jsonl", "tensorboard"}
    assert not (run / "checkpoints/2/default/d/half").exists()

    assert cli.main(["export", str(run), str(bucket / "exported"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["output"] == str(bucket / "exported") and answer["step"] == 2
    assert answer["bytes"] == sum(map(len, bytes_of(bucket / "exported").values()))
    assert bytes_of(bucket / "exported") == bytes_of(local)
    assert_same(load_model_dir(bucket / "exported"), load_model_dir(local))
    assert cli.main(["export", str(run), str(bucket / "exported")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["export", str(run), str(bucket / "data"), "--overwrite"]) == 2
    assert "is no model directory" in capsys.readouterr().err


def test_a_fresh_model_is_made_once_also_after_a_kill(bucket, monkeypatch):
    shapes = MGIE(presets.test()).shapes()  # the networks' own initialisation compiles for minutes
    ones = lambda model, key: jax.tree.map(lambda x: jax.numpy.ones(x.shape, x.dtype), shapes)  # noqa: E731
    monkeypatch.setattr(MGIE, "init", ones)
    c, mesh = default_config(), make_mesh((1, 1, 1), jax.devices()[:1])
    path, arguments = bucket / "run/init", (presets.test(), c, ("unet/",), mesh)
    (path / WRITING).write_text("")
    (path / "unet/config.json").write_text("{}")
    write_fresh(path, *arguments, lambda: ["a photo"] * 9)
    before = bytes_of(path)
    assert load_model_dir(path)[0] == presets.test() and WRITING not in before
    write_fresh(path, *arguments, lambda: pytest.fail("it is there already"))
    assert bytes_of(path) == before


@pytest.mark.skipif(not (ROOT / "configs").is_dir(), reason="not a source tree")
def test_a_damaged_checkpoint_in_a_bucket_is_set_aside(bucket, tmp_path, capsys):
    from tests.train.test_checkpoint import assert_same as same
    from tests.train.test_checkpoint import restored, save, state

    save(bucket, 1, 2)
    (found,) = [name for name in files(bucket) if name.endswith("/2/default/manifest.ocdbt")]
    (bucket / found).write_bytes((bucket / found).read_bytes()[:-1] + b"?")
    same(restored(bucket), state(1))
    assert "checkpoint 2 is damaged (manifest.ocdbt is damaged)" in capsys.readouterr().err
    assert checkpoint.steps(bucket) == [1] and files(bucket / "damaged/2")
    save(bucket, 3, 4, 5)
    assert checkpoint.steps(bucket) == [4, 5]  # the newest two are kept
    assert (bucket / "checkpoints/5/default/SHA256SUMS").exists()


# Data.


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A folder as `mgie data photos` makes it."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(12):
        hills = np.cumsum(np.cumsum(rng.normal(0, 1, (200, 260, 3)), 0), 1)
        hills = (hills - hills.min()) / (hills.max() - hills.min()) * 215 + rng.normal(20, 6, hills.shape)
        Image.fromarray(np.clip(hills, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def test_photos_and_a_data_set_made_of_them(bucket, collected, tmp_path, capsys):
    for out in (bucket / "photos", tmp_path / "photos"):
        assert cli.main(["data", "photos", str(out), str(collected)]) == 0, capsys.readouterr().err
    assert bytes_of(bucket / "photos") == bytes_of(tmp_path / "photos")
    here, there = load_photos(tmp_path / "photos"), load_photos(str(bucket / "photos"))
    assert list(here) == list(there) and all(np.array_equal(here[name], there[name]) for name in here)
    arguments = ["--examples", "6", "--size", "32", "--json"]
    answers = []
    for place in (bucket, tmp_path):
        made = ["data", "build", "generated", str(place / "photos"), str(place / "sets"), *arguments]
        assert cli.main(made) == 0, capsys.readouterr().err
        answers.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert answers[0].pop("path") == str(bucket / "sets/generated/1.0.0") and answers[1].pop("path")
    assert {**answers[0], "seconds": 0} == {**answers[1], "seconds": 0}
    stored, local = load(bucket / "sets", "train"), load(tmp_path / "sets", "train")
    assert list(stored) == list(local) == stored.__getitems__(range(6))
    assert contents(bucket / "sets").splits == contents(tmp_path / "sets").splits
    assert cli.main(["data", "show", str(bucket / "sets"), "-n", "2", "-o", str(bucket / "sheet.png")]) == 0
    assert cli.main(made[:4] + [str(bucket / "sets"), *arguments]) == 2
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(DataSetError, match="gs://.*this part of the data set is missing"):
        (shard,) = [name for name in files(bucket / "sets") if "train" in name]
        (bucket / "sets" / shard).unlink()
        load(bucket / "sets", "train")


def test_a_failed_build_leaves_nothing_but_its_log(bucket, tmp_path):
    for i in range(3):
        (tmp_path / "source" / f"{i}").mkdir(parents=True)
        (tmp_path / "source" / f"{i}" / "prompt.json").write_text(json.dumps({"edit": "darker"}))
        for side in (0, 1):
            (tmp_path / "source" / f"{i}" / f"7_{side}.jpg").write_bytes(b"no picture")
    with pytest.raises(DataSetError, match=re.escape(f"All are in {bucket}/ipr2pr/skipped.jsonl")):
        build("ipr2pr", tmp_path / "source", bucket)
    assert list(files(bucket)) == ["ipr2pr/skipped.jsonl"]


def test_a_preparation_goes_on_where_it_was_killed(bucket, tmp_path):
    write(tmp_path / "data", {"train": examples(9)})
    publish(dataset_in(tmp_path / "data"), bucket / "data", INFO)
    out = bucket / "out"
    chosen = settings(bucket / "data")
    assert chosen == settings(tmp_path / "data")

    class Killed(BaseException):
        pass

    def run(data, out, die_at=None):
        def progress(stage, done, total):
            if (stage, done) == die_at:
                raise Killed

        if found := finished(data, out, chosen, overwrite=False):
            return found
        return prepare(data, out, chosen, Parrot(2), progress=progress)

    for moment in (("ask", 4), ("write", 5)):
        with pytest.raises(Killed):
            run(bucket / "data", out, moment)
        assert not out.exists() and files(parts.folder_of(out))
    with pytest.raises(DataSetError, match="was begun with another limit"):
        finished(bucket / "data", out, replace(chosen, limit=3), overwrite=False)
    # Killed while the new data set is copied: what is there is no data set, and no obstacle.
    (out / WRITING).write_text("")
    (out / "prepare.json").write_text(json.dumps({"settings": {}}))
    done = run(bucket / "data", out)
    assert done.path == out and done.splits == {"train": 9} and done.asked <= 9 - 4
    run(tmp_path / "data", tmp_path / "out")
    assert bytes_of(out) == bytes_of(tmp_path / "out") and not parts.folder_of(out).exists()
    assert run(bucket / "data", out).asked == 0
    with pytest.raises(DataSetError, match="is not apart from"):
        finished(bucket / "data", bucket / "data/x", chosen, overwrite=False)


def test_processes_share_a_preparation(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("mgie_jax.data.prepare.POLL_BUCKET_S", 0.05)
    write(tmp_path / "data", {"train": examples(40)})
    data = tmp_path / "data"
    barrier = threading.Barrier(2)

    def run(process):
        return prepare(data, bucket / "out", settings(data), Parrot(2), process=process, count=2,
                       sync=lambda name: barrier.wait())  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(run, range(2)))
    assert {one.splits["train"] for one in done} == {40} and sum(one.asked for one in done) == 40
    assert all(one.asked for one in done) and not parts.folder_of(bucket / "out").exists()


def test_models_that_prepare_are_read_from_buckets(bucket, tiny_model_dir, tmp_path, capsys):
    from mgie_jax.weights.t5 import load_t5, load_t5_config, load_t5_tokenizer

    publish(write_t5(tmp_path / "t5"), bucket / "t5", "config.json")
    publish(tiny_model_dir, bucket / "tiny", INDEX)
    assert_same(load_t5(bucket / "t5"), load_t5(tmp_path / "t5"))
    told = load_t5_tokenizer(bucket / "t5", load_t5_config(bucket / "t5")[0])
    assert told.encode("The photo is dark") == load_t5_tokenizer(
        tmp_path / "t5", load_t5_config(tmp_path / "t5")[0]
    ).encode("The photo is dark")
    assert fingerprint(bucket / "tiny") == fingerprint(tiny_model_dir)
    assert fingerprint(bucket / "t5") == fingerprint(bucket / "t5") != fingerprint(tmp_path / "t5")
