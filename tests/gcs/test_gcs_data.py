"""Photos, data sets and their preparation on `gs://`: the same as on disk."""

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mgie_jax import cli
from mgie_jax.data import parts
from mgie_jax.data.builders.build import build
from mgie_jax.data.photos import load as load_photos
from mgie_jax.data.prepare import finished, prepare
from mgie_jax.data.records import INFO, DataSetError, contents, load
from mgie_jax.paths import files
from mgie_jax.weights.atomic import WRITING, fingerprint, publish
from mgie_jax.weights.files import INDEX
from tests.data.preparing import Parrot, examples, settings, write
from tests.gcs.same import assert_same, bytes_of, dataset_in
from tests.weights.t5_files import write_t5


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
