"""Runs with a model that is none: every job once, whatever kills it, and nothing that was done is done again."""

import json
import multiprocessing
import os
import random
import signal
import threading
from dataclasses import replace

import pytest
from PIL import Image

from mgie_jax.batch import store
from mgie_jax.batch.extras import Extras
from mgie_jax.batch.jobs import BatchError, folder_jobs
from mgie_jax.batch.order import groups, share
from mgie_jax.photo import open_photo
from tests.batch.painting import Painter, do, picture, run, settings

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.batch.painting"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ten photos of two sizes, and one that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(10):
        picture(folder / f"p{i}.png", i, (40, 40) if i % 3 else (80, 40))
    (folder / "q.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    return folder


def jobs_of(photos, instruction="brighter", seed=3):
    return folder_jobs(photos, instruction, seed, None)


def contents(out):
    """Of the pictures; and of the lines."""
    lines = {kind: store.read(out, kind) for kind in (store.RESULTS, store.ERRORS)}
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if not name.endswith(".jsonl")}, lines


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "whole"
    done = do(jobs_of(photos), out, Painter())
    assert (done.edited, done.skipped, done.failed) == (10, 0, 1)
    return contents(out)


def rows_of(painter):
    return sum(len(rows) for rows, _ in painter.batches)


def test_everything_is_there_once(photos, undisturbed):
    files, lines = undisturbed
    pictures = [f"p{i}.png" for i in range(10)]
    assert sorted(files) == sorted(["index.html", "settings.json", *pictures, *(f"before/{p}.jpg" for p in pictures)])
    assert list(lines["results"]) == pictures and list(lines["errors"]) == ["q.png"]
    line = lines["results"]["p1.png"]
    assert (line["instruction"], line["expressive"], line["seed"]) == ("brighter", "It becomes brighter.", 3)
    assert line["photo"] == str(photos / "p1.png") and line["size"] == [32, 32] and line["model"] == "painter"
    assert "damaged or cut short" in lines["errors"]["q.png"]["error"] and lines["errors"]["q.png"]["line"] == 11


def test_batches_are_of_one_size_and_padded_alike(photos, tmp_path):
    painter = Painter()
    seen = []
    do(jobs_of(photos), tmp_path, painter, progress=lambda *at: seen.append(at))
    assert sorted((len(rows), padded) for rows, padded in painter.batches) == [(2, 4), (4, 4), (4, 4)]
    assert {rows[0].before.size for rows, _ in painter.batches} == {(32, 32), (48, 24)}
    assert seen[0] == (0, 11) and seen[-1] == (11, 11)


def test_what_is_done_is_not_done_again(photos, tmp_path, undisturbed):
    out, jobs = tmp_path, jobs_of(photos)
    do(jobs[:5], out, Painter())
    painter = Painter()
    done = do(jobs, out, painter)
    assert (done.edited, done.skipped, done.failed) == (5, 5, 1) and rows_of(painter) == 5
    assert contents(out)[0].keys() == undisturbed[0].keys()
    assert list(contents(out)[1]["results"]) == list(undisturbed[1]["results"])  # in the order of the list
    never = do(jobs[:10], out, None)  # the model is not asked for
    assert (never.edited, never.skipped, never.failed, never.ran) == (0, 10, 0, None)
    assert not (out / "errors.jsonl").exists()


def test_what_has_changed_is_done_again(photos, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for i in range(6):
        (folder / f"p{i}.png").write_bytes((photos / f"p{i}.png").read_bytes())
    do(jobs_of(folder), out, Painter())
    jobs = jobs_of(folder)
    jobs[0] = replace(jobs[0], seed=4)
    jobs[1] = replace(jobs[1], instruction="darker")
    jobs[2] = replace(jobs[2], expressive="It is dark.")
    picture(folder / "p3.png", 33, (80, 40))
    (out / "p4.png").write_bytes(b"cut short")
    os.utime(folder / "p5.png", (0, 0))  # the same photo still
    painter = Painter()
    done = do(jobs, out, painter)
    assert (done.edited, done.skipped) == (5, 1)
    lines = store.read(out, store.RESULTS)
    assert [lines[f"p{i}.png"]["seed"] for i in range(2)] == [4, 3] and lines["p1.png"]["instruction"] == "darker"
    assert lines["p2.png"]["expressive"] == "It is dark." and len(lines) == 6
    assert (out / "results.jsonl").read_bytes().count(b"\n") == 6
    assert do(jobs, out, None).skipped == 6
    assert {padded for _, padded in painter.batches} == {2, 1}  # given and written ones are apart


def test_settings_must_be_those_it_was_begun_with(photos, tmp_path):
    out, jobs = tmp_path / "out", jobs_of(photos)[:2]
    do(jobs, out, Painter())
    other = settings(steps=4, model="another")
    with pytest.raises(BatchError, match="begun with another model, steps; .*--overwrite"):
        store.check(out, other, jobs, False)
    store.check(out, other, jobs, True)
    with store.begun(out, other):
        pass
    assert store.read(out, store.RESULTS) == {} and (out / "p0.png").exists()


def test_a_folder_of_something_else_is_left_alone(photos, tmp_path):
    out, jobs = tmp_path / "out", jobs_of(photos)[:2]
    out.mkdir()
    (out / "holiday.png").touch()
    store.check(out, settings(), jobs, False)
    (out / "p1.png").write_bytes(b"mine")
    with pytest.raises(BatchError, match=r"p1\.png: is there already, and no run"):
        do(jobs, out, Painter())
    assert (out / "p1.png").read_bytes() == b"mine" and len(os.listdir(out)) == 2
    assert do(jobs, out, Painter(), overwrite=True).edited == 2 and (out / "p1.png").read_bytes() != b"mine"
    (tmp_path / "file").touch()
    with pytest.raises(BatchError, match="is a file"):
        do(jobs, tmp_path / "file", Painter())


def test_two_runs_do_not_write_in_one_folder(photos, tmp_path):
    class Another(Painter):
        def edit_prepared(self, rows, **given):
            with pytest.raises(BatchError, match="another run is writing there"):
                do(jobs_of(photos), tmp_path, Painter())
            return super().edit_prepared(rows, **given)

    assert do(jobs_of(photos)[:2], tmp_path, Another()).edited == 2


@pytest.mark.parametrize("moment", ["picture", "line", "gather"])
def test_killed_and_repeated_it_ends_as_if_it_had_not_been(photos, undisturbed, tmp_path, moment):
    out = tmp_path / "out"
    child = FORKS.Process(target=run, args=(photos, out, 0.0, moment))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    known, painter = len(store.read(out, store.RESULTS)), Painter()
    assert known == {"picture": 0, "line": 0, "gather": 10}[moment] or (moment == "line" and known in (2, 4))
    done = do(jobs_of(photos), out, painter)
    assert done.skipped == known and rows_of(painter) == 10 - known
    assert contents(out) == undisturbed


def assert_whole_though_killed(photos, out, kills, whole):
    """The same run, started again and again and killed at random moments, ends with what it was to make."""
    killed, random_ = 0, random.Random(0)
    while True:
        child = FORKS.Process(target=run, args=(photos, out, 0.02))
        child.start()
        if killed < kills:
            child.join(random_.uniform(0.03, 0.4))
            child.kill()
        child.join(120)
        killed += child.exitcode == -signal.SIGKILL
        if child.exitcode == 0:
            assert contents(out) == whole
            if killed >= kills:
                return
            for path in out.rglob("*.png"):  # too quick for this machine: begin anew
                path.unlink()


def test_killed_at_random_moments(photos, undisturbed, tmp_path):
    assert_whole_though_killed(photos, tmp_path / "out", 4, undisturbed)


def test_processes_share_the_jobs(photos, undisturbed, tmp_path):
    out, painters, barrier = tmp_path / "out", [Painter(), Painter(), Painter()], threading.Barrier(3)
    did = {}

    def one(process):
        did[process] = do(jobs_of(photos), out, painters[process], process=process, count=3,
                          sync=lambda name: barrier.wait(60))  # fmt: skip

    threads = [threading.Thread(target=one, args=(process,)) for process in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [rows_of(painter) for painter in painters] == [3, 4, 3]
    assert {(done.edited, done.skipped, done.failed) for done in did.values()} == {(10, 0, 1)}
    assert contents(out) == undisturbed


def test_extras_are_made_later_too(photos, tmp_path, undisturbed):
    jobs = jobs_of(photos)[:4]
    do(jobs, tmp_path, Painter(), extras=Extras())
    assert not (tmp_path / "before").exists()
    done = do(jobs, tmp_path, None, extras=Extras(compare=True, html=True))
    assert done.skipped == 4
    assert (tmp_path / "before/p3.png.jpg").read_bytes() == undisturbed[0]["before/p3.png.jpg"]
    assert Image.open(tmp_path / "p3-compare.png").width > 2 * 384


def test_a_failing_disk_ends_the_run_with_its_error(photos, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mgie_jax.photo.os.replace", full)
    with pytest.raises(ValueError, match="No space left"):
        do(jobs_of(photos), tmp_path, Painter())
    monkeypatch.undo()
    assert do(jobs_of(photos), tmp_path, Painter()).edited == 10


def test_ctrl_c_keeps_what_was_edited(photos, tmp_path):
    class Interrupted(Painter):
        def edit_prepared(self, rows, **given):
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().edit_prepared(rows, **given)

    with pytest.raises(KeyboardInterrupt):
        do(jobs_of(photos), tmp_path, Interrupted())
    assert len(store.read(tmp_path, store.RESULTS)) == 8
    assert do(jobs_of(photos), tmp_path, Painter()).edited == 2


def test_few_photos_are_in_memory_at_a_time(tmp_path):
    for i in range(40):
        picture(tmp_path / f"{i:02}.png", i)
    held, most = set(), []

    class Counting(Painter):
        def prepare(self, photo, *args, **given):
            held.add(photo)
            most.append(len(held))
            return super().prepare(photo, *args, **given)

        def edit_prepared(self, rows, **given):
            for photo in sorted(held)[: len(rows)]:
                held.remove(photo)
            return super().edit_prepared(rows, **given)

    do(jobs_of(tmp_path), tmp_path / "out", Counting(0.02))
    # Two batches ahead of one, and what the next look ahead has begun.
    assert max(most) <= 3 * 4 + 1


def test_bad_jobs_do_not_stop_the_good(photos, tmp_path):
    good, *_ = jobs = jobs_of(photos)[:3]
    missing, folder, long = photos / "missing.png", photos, "a far too long instruction"
    (tmp_path / "liar.png").write_bytes(picture(tmp_path / "turned.png", 1, (80, 40)).read_bytes())
    bad = [
        replace(good, photo=missing, output="a.png"), replace(good, photo=folder, output="b.png"),
        replace(good, instruction=long, output="c.png"),
    ]  # fmt: skip
    done = do([*bad, *jobs], tmp_path / "out", Painter())
    errors = store.read(tmp_path / "out", store.ERRORS)
    assert (done.edited, done.failed) == (3, 3) and list(errors) == ["a.png", "b.png", "c.png"]
    told = [line["error"] for line in errors.values()]
    assert "no such file" in told[0] and "is a folder" in told[1] and "too long" in told[2]


def test_a_header_that_lies_costs_a_batch_and_no_more(photos, tmp_path, monkeypatch):
    sizes = {f"p{i}.png": (40, 40) for i in range(10)}  # what every third is not
    monkeypatch.setattr("mgie_jax.batch.run.upright_size", lambda path: sizes.get(path.name))
    painter = Painter()
    assert do(jobs_of(photos), tmp_path, painter).edited == 10
    assert sorted(len(rows) for rows, _ in painter.batches) == [2, 4, 4]


def test_groups_have_each_job_once_and_few_shapes(photos):
    jobs = [replace(job, expressive="x" if i == 7 else None) for i, job in enumerate(jobs_of(photos)[:10])]
    found = groups(jobs, lambda job: open_photo(job.photo).size, lambda job: -job.line, 4)
    assert sorted(job.line for group in found for job in group.jobs) == list(range(1, 11))
    assert [(group.size, group.rows, [job.line for job in group.jobs]) for group in found] == [
        ((80, 40), 4, [10, 7, 4, 1]), ((40, 40), 4, [9, 6, 5, 3, 2]), ((40, 40), 1, [8])
    ]  # fmt: skip
    for count in (1, 2, 3, 20):
        shares = [share(jobs, process, count) for process in range(count)]
        assert sum(shares, []) == jobs and max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_damaged_line_is_done_again(photos, tmp_path):
    jobs = jobs_of(photos)[:3]
    do(jobs, tmp_path, Painter())
    lines = (tmp_path / "results.jsonl").read_bytes().split(b"\n")
    (tmp_path / "results.jsonl").write_bytes(b"\n".join([lines[0], b"\0\0\0", b"[]", lines[2], b'{"outp']))
    assert do(jobs, tmp_path, Painter()).edited == 1
    assert [json.loads(line)["output"] for line in (tmp_path / "results.jsonl").read_text().splitlines()] == [
        "p0.png", "p1.png", "p2.png"
    ]  # fmt: skip
