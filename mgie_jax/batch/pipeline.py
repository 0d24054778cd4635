"""Photos through the devices: threads read ahead of them, threads write behind them.

    readers (threads)  ->  batches  ->  devices (the caller's thread)  ->  writers (threads)

Few photos are in memory at a time, however many there are: the readers are at most two batches ahead (or a photo each,
where a batch is smaller), and no more than two batches wait to be written.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from mgie_jax.batch.jobs import Job
from mgie_jax.batch.order import Group, Size
from mgie_jax.batch.store import Record, photo_of
from mgie_jax.editor import EditResult, Photo, Prepared

THREADS = min(8, os.cpu_count() or 1)  # that read, and as many that write
AHEAD = 2  # batches
BEHIND = 2
DEVICE_STAGES = ("write", "guide", "denoise", "decode")

Item, Got = TypeVar("Item"), TypeVar("Got")


@runtime_checkable
class Edits(Protocol):
    """`Editor`, or a test's."""

    def prepare(self, photo: Photo, instruction: str, *, seed: int, expressive: str | None) -> Prepared: ...

    def width(self, instruction: str, expressive: str | None) -> int: ...

    def edit_prepared(self, rows: Sequence[Prepared], *, padded_to: int | None) -> list[EditResult]: ...


@dataclass(frozen=True, eq=False)
class Read:
    """A job whose photo has been read.

    Attributes:
      group: that it belongs to; its batches are padded to the group's rows.
      about: `store.photo_of` its photo.
    """

    job: Job
    group: Group
    about: Record
    prepared: Prepared


@dataclass(frozen=True)
class Broken:
    """A job that cannot be done, and why."""

    job: Job
    why: str


@dataclass(frozen=True)
class Ran:
    """How it went.

    Attributes:
      edited, failed: numbers of jobs.
      seconds: from the first photo read to the last one written.
      idle: the share of the time until the devices had finished in which nothing ran on them; a program's compilation
        counts as its run.
    """

    edited: int
    failed: int
    seconds: float
    idle: float


def run(
    groups: Sequence[Group], editor: Edits, sampling: dict, *,
    save: Callable[[Read, EditResult], Record],
    keep: Callable[[Sequence[Record]], None],
    fail: Callable[[Broken], None],
    progress: Callable[[int], None],
) -> Ran:  # fmt: skip
    """Do all jobs.

    Args:
      sampling: keyword arguments of `Editor.edit_prepared`.
      save: writes one edited picture, in a thread of several; gives its line.
      keep: writes the lines of a batch, once its pictures are there; in one thread.
      fail: is told what cannot be done; in the caller's thread.
      progress: called with how many jobs have come to their end since the last call.

    Raises:
      whatever `save` or `keep` raises. What was edited until then is written first.
    """
    began = finished = time.perf_counter()
    busy, edited, failed = 0.0, 0, 0

    def read(item: tuple[Job, Group]) -> Read | Broken:
        job, group = item
        try:
            about = photo_of(job.photo) if job.photo.is_file() else {}  # what is none has its error from `prepare`
            ready = editor.prepare(job.photo, job.instruction, seed=job.seed, expressive=job.expressive)
            return Read(job, group, about, ready)
        except (ValueError, OSError, MemoryError) as error:
            return Broken(job, str(error) or repr(error))

    with ExitStack() as stack:
        writers = stack.enter_context(ThreadPoolExecutor(THREADS, "write"))
        keeper = stack.enter_context(ThreadPoolExecutor(1, "keep"))
        readers = ThreadPoolExecutor(THREADS, "read")
        stack.callback(readers.shutdown, cancel_futures=True)

        def finish(batch: Sequence[Read], results: Sequence[EditResult]) -> None:
            keep(list(writers.map(save, batch, results)))

        waiting: deque[Future] = deque()
        items = [(job, group) for group in groups for job in group.jobs]
        ahead = max(THREADS, AHEAD * max((group.rows for group in groups), default=1))
        for batch in batches(_ahead(readers, read, items, ahead)):
            if isinstance(batch, Broken):
                fail(batch)
                failed += 1
                progress(1)
                continue
            results = editor.edit_prepared([row.prepared for row in batch], padded_to=batch[0].group.rows, **sampling)
            finished = time.perf_counter()
            busy += sum(results[0].seconds[stage] for stage in DEVICE_STAGES)
            waiting.append(keeper.submit(finish, batch, results))
            while len(waiting) > BEHIND:
                waiting.popleft().result()
            edited += len(batch)
            progress(len(batch))
        for written in waiting:
            written.result()
    idle = 1 - busy / (finished - began) if edited else 0.0
    return Ran(edited, failed, time.perf_counter() - began, idle)


def batches(found: Iterable[Read | Broken]) -> Iterator[list[Read] | Broken]:
    """Photos of one size together, as many as their group's batches have rows; the broken at once.

    Photos come in their groups' order. Those whose size is not what their headers told are batches of their own when
    their group ends.
    """
    waiting: dict[Size, list[Read]] = {}
    group = None
    for one in found:
        if isinstance(one, Broken):
            yield one
            continue
        if one.group is not group:
            yield from waiting.values()
            waiting, group = {}, one.group
        size = one.prepared.before.size
        waiting.setdefault(size, []).append(one)
        if len(waiting[size]) == group.rows:
            yield waiting.pop(size)
    yield from waiting.values()


def _ahead(pool: ThreadPoolExecutor, task: Callable[[Item], Got], items: Iterable[Item], limit: int) -> Iterator[Got]:
    """`task` of each item, in order, begun for at most `limit` items before the one that is asked for."""
    begun: deque[Future[Got]] = deque()
    for item in items:
        begun.append(pool.submit(task, item))
        if len(begun) > limit:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()
