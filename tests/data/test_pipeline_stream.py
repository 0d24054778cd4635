"""Streams of batches: the same ones whatever makes them, errors that arrive, nothing left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax._src import xla_bridge
from jax.sharding import AbstractMesh

from mgie_jax.data import pipeline
from mgie_jax.data.pipeline import HostBatch, host_rows, local_rows, stream, to_device
from mgie_jax.data.records import DataSetError
from mgie_jax.data.skips import JUDGED_FROM, Skips
from mgie_jax.sharding import AXES, make_mesh

BATCH = 4


def numbers(number, rows):
    """Places, and which process made them with how many XLA backends."""
    places = number * BATCH + np.arange(BATCH)[rows]
    made_by = np.array([os.getpid(), len(xla_bridge._backends)])
    skipped = (("broken", "for a reason"),) if number == 5 else ()
    return HostBatch({"places": places, "made_by": made_by}, tuple(map(str, places)), skipped)


class Odd(Exception):
    """An exception that cannot be unpickled."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


@dataclass(frozen=True)
class Fails:
    """Fails at number 3, with an error or with the death of its process."""

    error: Exception | None

    def __call__(self, number, rows):
        if number == 3:
            if self.error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise self.error if not isinstance(self.error, ArithmeticError) else Odd(1, 2)
        return numbers(number, rows)


def places(batches):
    return [batch.arrays["places"].tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_workers_gives_the_same_batches_from_any_start(workers):
    rows = host_rows(BATCH, 1, 2)
    found = list(stream(numbers, 2, 9, rows, workers, prefetch=3))
    assert places(found) == [[4 * k + 2, 4 * k + 3] for k in range(2, 9)]
    assert [batch.ids for batch in found] == [(str(4 * k + 2), str(4 * k + 3)) for k in range(2, 9)]
    assert [batch.skipped for batch in found] == [numbers(k, rows).skipped for k in range(2, 9)]
    makers = {tuple(batch.arrays["made_by"].tolist()) for batch in found}
    if workers:
        assert len(makers) == workers and os.getpid() not in dict(makers)
        assert set(dict(makers).values()) == {0}  # no worker holds a device
    assert not multiprocessing.active_children()


def test_a_stream_of_nothing_ends_at_once():
    assert list(stream(numbers, 4, 4, slice(None), 0, 2)) == []


@pytest.mark.parametrize(("workers", "prefetch"), [(0, 0), (0, 1), (0, 5), (1, 0)])
def test_prefetching_changes_nothing(workers, prefetch):
    assert places(stream(numbers, 0, 3, slice(None), workers, prefetch)) == np.arange(12).reshape(3, 4).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_arrives_as_itself_where_its_batch_is_due(workers):
    batches = stream(Fails(DataSetError("the disk is gone")), 1, 9, slice(None), workers, prefetch=2)
    assert places([next(batches), next(batches)]) == [[4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(DataSetError, match="the disk is gone"):
        next(batches)
    assert not multiprocessing.active_children()


def test_an_error_that_cannot_travel_arrives_in_words():
    with pytest.raises(RuntimeError, match="batch 3: Odd: 1 and 2"):
        list(stream(Fails(ArithmeticError()), 3, 9, slice(None), 1, prefetch=2))


def test_a_killed_worker_is_noticed():
    with pytest.raises(RuntimeError, match="terminated unexpectedly with exit code -9"):
        list(stream(Fails(None), 3, 9, slice(None), 1, prefetch=2))


def test_signals_to_the_whole_group_leave_workers_at_work_and_closing_ends_them():
    batches = to_device(stream(numbers, 0, 10**6, slice(None), 2, prefetch=2), mesh=None)

    def signal_all():
        for worker in multiprocessing.active_children():
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(worker.pid, number)

    def signal_as_they_start():
        while len(multiprocessing.active_children()) < 2:
            time.sleep(0.01)
        signal_all()

    with ThreadPoolExecutor(1) as other:
        signalled = other.submit(signal_as_they_start)
        next(batches)
        signalled.result()
    workers = multiprocessing.active_children()
    signal_all()
    for number in range(1, 20):
        np.testing.assert_array_equal(next(batches).arrays["places"], np.arange(4) + 4 * number)
    assert len(workers) == 2 and all(worker.is_alive() for worker in workers)
    batches.close()
    assert not any(worker.is_alive() for worker in workers)


CHILD = """
import os, signal, sys, time
sys.path[:0] = {path!r}
from mgie_jax.data.pipeline import stream
from test_pipeline_stream import numbers
if __name__ == "__main__":
    batches = stream(numbers, 0, 10**6, slice(None), 2, 2)
    print(*sorted({{int(next(batches).arrays["made_by"][0]) for _ in range(8)}}), flush=True)
    if {leave}:
        sys.exit()
    time.sleep(60)
"""


@pytest.mark.parametrize("leave", [True, False])
def test_workers_end_with_the_main_process_however_it_ends(tmp_path, leave):
    script = tmp_path / "main.py"
    path = [str(Path(__file__).parent), str(Path(pipeline.__file__).parents[2])]
    script.write_text(CHILD.format(path=path, leave=leave))
    main = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        workers = [int(pid) for pid in main.stdout.readline().split()]
        assert len(workers) == 2, main.stderr.read()
        if not leave:
            main.kill()
        _, errors = main.communicate(timeout=30)
        assert leave == (main.returncode == 0) and "Traceback" not in errors, errors
        end = time.monotonic() + 10
        while (left := [pid for pid in workers if Path(f"/proc/{pid}").exists()]) and time.monotonic() < end:
            time.sleep(0.05)
        assert not left
    finally:
        main.kill()


def test_hosts_share_a_batch_evenly():
    assert [host_rows(12, i, 3) for i in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    with pytest.raises(ValueError, match="batch of 10 .* 4 processes"):
        host_rows(10, 0, 4)


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ([slice(0, 2), slice(2, 4)], slice(0, 4)),
        ([slice(4, 6), slice(4, 6), slice(6, 8)], slice(4, 8)),  # `tensor` repeats rows on devices
        ([slice(None)], slice(0, 8)),  # an axis that does not split the batch crosses processes
        ([slice(4, 6), slice(0, 2)], [0, 1, 4, 5]),  # hosts interleave, as on a torus
    ],
)
def test_local_rows_are_those_of_the_devices(monkeypatch, held, expected):
    fake = SimpleNamespace(addressable_devices_indices_map=lambda shape: {i: (rows,) for i, rows in enumerate(held)})
    monkeypatch.setattr(pipeline, "batch_sharding", lambda mesh: fake)
    rows = local_rows(8, AbstractMesh((2, 2, 2), AXES))
    assert rows == expected if isinstance(expected, slice) else rows.tolist() == expected


def test_local_rows_must_divide():
    with pytest.raises(ValueError, match="batch of 10 .* = 4"):
        local_rows(10, AbstractMesh((2, 2, 1), AXES))
    assert local_rows(10, None) == slice(0, 10)


@pytest.mark.parametrize("meshed", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_batches_go_to_the_devices_a_few_ahead(meshed, depth):
    mesh = make_mesh((1, 1, 1), jax.devices()[:1]) if meshed else None
    taken = []

    def source():
        for number in range(5):
            taken.append(number)
            yield HostBatch({"x": np.full((2, 3), number)}, (f"{number}",), (("a", "b"),))

    batches = to_device(source(), mesh, depth)
    first = next(batches)
    assert taken == list(range(depth))
    rest = list(batches)
    assert [int(batch.arrays["x"][0, 0]) for batch in [first, *rest]] == list(range(5))
    assert isinstance(first.arrays["x"], jax.Array) and first.arrays["x"].shape == (2, 3)
    assert (first.ids, first.skipped) == (("0",), (("a", "b"),))
    if meshed:
        assert first.arrays["x"].sharding.mesh == mesh


def test_too_many_skipped_examples_stop_a_run():
    good = HostBatch(None, ("x",) * 100, ())
    bad = HostBatch(None, ("x",) * 100, (("a/1", "x"), ("a/5", "x"), ("a/7", "is damaged"), ("a/9", "is too long")))
    skips = Skips(0.01)
    for batch in [good] * 10 + [bad] * 3:
        skips.add(batch)
    with pytest.raises(DataSetError, match="16 of 1416 .* more than 0.01") as error:
        skips.add(bad)
    assert "a/7 (is damaged); a/9 (is too long)" in str(error.value) and "max_skipped" in str(error.value)


def test_a_run_that_begins_badly_stops_early():
    with pytest.raises(DataSetError, match="11 of 12"):
        Skips(0.01).add(HostBatch(None, ("x",), (("id", "is damaged"),) * 11))
    assert JUDGED_FROM * 0.01 == 10


def test_a_share_of_skipped_examples_is_one():
    with pytest.raises(ValueError, match="between 0 and 1"):
        Skips(2.0)
