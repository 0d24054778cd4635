"""A run with its weights, data and work folder on `gs://` is the run on disk."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import jax
import pytest

import mgie_jax
from mgie_jax import cli
from mgie_jax.cli.train import read_config
from mgie_jax.data.records import INFO
from mgie_jax.models import presets
from mgie_jax.models.mgie import MGIE
from mgie_jax.paths import files
from mgie_jax.sharding import make_mesh
from mgie_jax.train import checkpoint, tasks
from mgie_jax.train.config import default_config
from mgie_jax.train.interrupts import Preempted
from mgie_jax.train.log import Log
from mgie_jax.train.start import write_fresh
from mgie_jax.weights.atomic import WRITING, publish
from mgie_jax.weights.files import INDEX, load_model_dir
from tests.data.preparing import examples, write
from tests.gcs.same import assert_same, bytes_of, dataset_in

ROOT = Path(mgie_jax.__file__).parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set to train on."""
    found = [replace(example, expressive=f"It becomes {example.instruction}.") for example in examples(7)]
    return write(tmp_path_factory.mktemp("sets"), {"train": found})


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
