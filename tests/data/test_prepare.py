"""Preparing a data set: every example once, whatever kills it and however many work on it."""

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from dataclasses import asdict, replace

import pytest

from mgie_jax.data import parts
from mgie_jax.data.prepare import Window, batches, finished, prepare, share, windows
from mgie_jax.data.records import DataSetError, load
from mgie_jax.weights.atomic import fingerprint
from tests.data.preparing import Parrot, examples, picture, run, settings, write

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.data.preparing"])


@pytest.fixture(scope="module")
def frogs(tmp_path_factory):
    """Two splits of pairs; several windows, several widths."""
    return write(tmp_path_factory.mktemp("data"), {"train": examples(37), "test": examples(5, "test")})


def contents_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(frogs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "whole"
    prepare(frogs, out, settings(frogs), Parrot(2))
    return contents_of(out)


def test_the_same_examples_come_back_with_expressive_instructions(frogs, tmp_path):
    parrot, seen = Parrot(2), []
    told = lambda *at: seen.append(at)  # noqa: E731
    done = prepare(frogs, tmp_path / "out", settings(frogs), parrot, progress=told)
    assert (done.splits, done.skipped, done.log, done.empty, done.asked) == ({"train": 37, "test": 5}, 0, None, 0, 42)
    for split, count in done.splits.items():
        old, new = list(load(frogs, split)), list(load(tmp_path / "out", split))
        assert [replace(example, expressive="") for example in new] == old  # ids, order and the pictures' bytes
        assert all(e.expressive.startswith(f"{e.instruction}, ") for e in new) and len(new) == count
    assert not parts.folder_of(tmp_path / "out").exists()
    assert [at for at in seen if at[0] == "ask"][0] == ("ask", 0, 42) and seen[-1] == ("write", 42, 42)
    # Few batches are part full, and each is of one width.
    assert sum(len(batch) < 2 for batch in parrot.asked) <= 3 * 4
    assert all(len({question.width for question in batch}) == 1 for batch in parrot.asked)


def test_splits_and_a_limit(frogs, tmp_path):
    done = prepare(frogs, tmp_path / "a", settings(frogs, splits=("test",), limit=3), Parrot(2))
    assert done.splits == {"test": 3} and [e.id for e in load(tmp_path / "a")] == ["test-0", "test-1", "test-2"]


def test_silence_is_filled_and_the_broken_are_left_out(tmp_path):
    found = examples(8)
    found[2] = replace(found[2], instruction="silent now")
    found[5] = replace(found[5], instruction="a broken one")
    data = write(tmp_path / "data", {"train": found})
    with pytest.raises(DataSetError, match=r"1 of 8 .* more than 0\.05 .*train-5 \(cannot be seen\).*out\.parts"):
        prepare(data, tmp_path / "out", settings(data), Parrot(2))
    assert not (tmp_path / "out").exists()
    done = prepare(data, tmp_path / "out", settings(data), Parrot(2), max_skipped=0.2)
    assert (done.splits, done.skipped, done.empty) == ({"train": 7}, 1, 1)
    assert done.log.read_text() == '{"split": "train", "id": "train-5", "reason": "cannot be seen"}\n'
    new = list(load(tmp_path / "out"))
    assert [e.id for e in new] == [e.id for e in found if e.id != "train-5"] and new[2].expressive == "silent now"


def test_a_split_with_nothing_good_is_an_error(tmp_path):
    data = write(tmp_path / "data", {"train": [replace(examples(1)[0], instruction="broken")]})
    with pytest.raises(DataSetError, match="no example of split 'train' is any good; .*cannot be seen"):
        prepare(data, tmp_path / "out", settings(data), Parrot(2), max_skipped=1.0)


def test_shares_are_disjoint_and_complete():
    found = windows({"train": 101, "test": 7}, 8)
    assert found[0] == Window("train", 0, 8) and found[-1] == Window("test", 0, 7) and len(found) == 14
    for count in (1, 2, 3, 20):
        shares = [share(found, process, count) for process in range(count)]
        covered = [(w.split, i) for part in shares for w in part for i in range(w.start, w.stop)]
        everything = [("train", i) for i in range(101)] + [("test", i) for i in range(7)]
        assert sorted(covered) == sorted(everything)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_is_of_one_width():
    assert batches([64, 128, None, 64, 64, 128], 2) == [[0, 3], [4], [1, 5]]
    assert batches([None], 2) == []


@pytest.mark.parametrize("moment", ["ask", "line", "write", "tidy"])
def test_killed_and_repeated_it_ends_as_if_it_had_not_been(frogs, undisturbed, tmp_path, moment):
    out = tmp_path / "out"
    child = FORKS.Process(target=run, args=(frogs, out, 0.0, moment))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL and parts.folder_of(out).exists() and out.exists() == (moment == "tidy")
    before = parts.read(parts.folder_of(out))
    done, parrot = finished(frogs, out, settings(frogs), False), Parrot(2)
    assert (done is not None) == (moment == "tidy")
    if done is None:
        done = prepare(frogs, out, settings(frogs), parrot)
        # What was written down is not asked again.
        known = sum(len(batch.written) for batch in before.values())
        assert sum(map(len, parrot.asked)) == 42 - known == done.asked and known
    assert contents_of(out) == undisturbed and not parts.folder_of(out).exists()


def kill_at_random_moments(frogs, out, kills, whole):
    """Start the same run again and again, each killed at a moment of its own, until one ends; how many were killed."""
    killed, random_ = 0, random.Random(0)
    for _ in range(40 * kills):
        child = FORKS.Process(target=run, args=(frogs, out, 0.01))
        child.start()
        if killed < kills:
            child.join(random_.uniform(0.05, 0.6))
            child.kill()
        child.join(120)
        killed += child.exitcode == -signal.SIGKILL
        if child.exitcode == 0 and killed >= kills:
            break
        if child.exitcode == 0:  # too quick for this machine: begin anew
            assert contents_of(out) == whole
            for path in out.iterdir():
                path.unlink()
            out.rmdir()
    assert contents_of(out) == whole
    return killed


def test_killed_at_random_moments(frogs, undisturbed, tmp_path):
    assert kill_at_random_moments(frogs, tmp_path / "out", 4, undisturbed) >= 4


def test_two_processes_share_the_work_and_another_number_goes_on_with_it(frogs, undisturbed, tmp_path):
    out, parrots, barrier = tmp_path / "out", [Parrot(2), Parrot(2)], threading.Barrier(2)

    def one(process):
        together = dict(process=process, count=2, sync=lambda name: barrier.wait())
        prepare(frogs, out, settings(frogs), parrots[process], **together)

    # Three processes have begun, of which one was killed before it did anything.
    with pytest.raises(RuntimeError):
        parrot = Parrot(2)
        parrot.questions = lambda examples: (_ for _ in ()).throw(RuntimeError)
        prepare(frogs, out, settings(frogs), parrot, process=0, count=3)
    began = Parrot(2)
    waits = threading.Thread(target=prepare, args=(frogs, out, settings(frogs), began), daemon=True,
                             kwargs=dict(process=1, count=3))  # fmt: skip
    waits.start()
    until = time.monotonic() + 60
    while not list(parts.folder_of(out).glob("ended-00001-of-00003")) and time.monotonic() < until:
        time.sleep(0.01)

    threads = [threading.Thread(target=one, args=(process,)) for process in range(2)]
    for thread in threads:
        thread.start()
    for thread in [*threads, waits]:
        thread.join(60)
    asked = [sum(map(len, parrot.asked)) for parrot in (*parrots, began)]
    assert contents_of(out) == undisturbed
    assert sum(asked) == 42 and all(asked)


def test_settings_must_be_those_it_was_begun_with(frogs, tmp_path):
    out, mine = tmp_path / "out", settings(frogs)
    parts.begin(parts.folder_of(out), json.loads(json.dumps(asdict(mine))))
    assert finished(frogs, out, mine, False) is None
    other = replace(mine, batch_size=3, dtype="bfloat16")
    with pytest.raises(DataSetError, match="begun with another batch_size, dtype; .*--overwrite"):
        finished(frogs, out, other, False)
    assert finished(frogs, out, other, True) is None


def test_what_is_there_is_kept_unless_it_may_be_replaced(frogs, tmp_path):
    out, mine = tmp_path / "out", settings(frogs)
    prepare(frogs, out, mine, Parrot(2))
    assert finished(frogs, out, mine, False).splits == {"train": 37, "test": 5}  # done is done
    other = settings(frogs, limit=2)
    with pytest.raises(DataSetError, match="exists already; .*--overwrite"):
        finished(frogs, out, other, False)
    assert finished(frogs, out, other, True) is None
    assert prepare(frogs, out, other, Parrot(2)).splits == {"train": 2, "test": 2}
    assert len(load(out, "train")) == 2 and os.listdir(tmp_path) == ["out"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters").touch()
    with pytest.raises(DataSetError, match="is no data set, so --overwrite does not replace it"):
        finished(frogs, tmp_path / "home", mine, True)
    for place in (frogs, frogs / "frogs", frogs.parent, frogs / "new"):
        with pytest.raises(DataSetError, match="not apart from"):
            finished(frogs, place, mine, True)


def test_two_runs_do_not_write_in_one_place(frogs, tmp_path):
    out = tmp_path / "out"

    class Another(Parrot):
        def __call__(self, questions):
            with pytest.raises(DataSetError, match="another `mgie prepare`"):
                prepare(frogs, out, settings(frogs), Parrot(2))
            with pytest.raises(DataSetError, match="another `mgie prepare`"):
                prepare(frogs, out, settings(frogs, limit=1), Parrot(2))
            return super().__call__(questions)

    assert prepare(frogs, out, settings(frogs, splits=("test",)), Another(2)).splits == {"test": 5}


def test_a_damaged_line_is_named(frogs, tmp_path):
    folder = tmp_path / "x.parts"
    parts.begin(folder, {})
    (folder / "part-00000.jsonl").write_bytes(b'{"split": 3}\n{"spl')
    with pytest.raises(DataSetError, match="part-00000.jsonl: is damaged"):
        parts.read(folder)
    (folder / "part-00000.jsonl").write_bytes(b'{"spl')
    assert parts.read(folder) == {}


def test_a_fingerprint_tells_models_apart(tmp_path):
    (tmp_path / "a").write_bytes(picture(0))
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    (tmp_path / "a").write_bytes(picture(0) + b" ")
    assert fingerprint(tmp_path) != first
    (tmp_path / "SHA256SUMS").write_text("x")
    summed = fingerprint(tmp_path)
    os.utime(tmp_path / "a", (0, 0))
    assert fingerprint(tmp_path) == summed != first
