"""From a pure function of an update's number to batches on the devices: worker processes, threads, transfers.

Nothing here is state: a stream that starts at update s yields what one that started at 0 yields from s on, whatever
the number of workers or hosts.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import math
import multiprocessing
import os
import pickle
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from jaxtyping import Int, PyTree

from mgie_jax.sharding import AnyMesh, batch_sharding


@dataclass(frozen=True)
class HostBatch:
    """One host's part of a global batch.

    Attributes:
      arrays: a pytree of arrays whose leading axis is this host's rows.
      ids: of the rows' examples.
      skipped: (id, reason) of the examples passed over while the rows were made.
    """

    arrays: PyTree
    ids: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


Rows = slice | Int[np.ndarray, " r"]
"""Rows of a global batch: whatever indexes `np.arange(batch_size)`."""

BatchFn = Callable[[int, Rows], HostBatch]
"""(number of an update, rows of its global batch) -> those rows. Pure; to be sent to workers, it can be pickled."""


def host_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of one of several equal hosts.

    Raises:
      ValueError: the batch cannot be split evenly.
    """
    if batch_size % process_count:
        raise ValueError(f"a batch of {batch_size} cannot be split evenly over {process_count} processes")
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def local_rows(batch_size: int, mesh: AnyMesh | None) -> Rows:
    """The rows of a global batch that belong on this process's devices, in ascending order; all without a mesh.

    They need not be one run of rows, for neighbours on the mesh are neighbours in the machine; and several processes
    hold the same ones where a mesh axis that does not split the batch crosses processes.

    Raises:
      ValueError: `data` times `fsdp` does not divide the batch.
    """
    if mesh is None:
        return slice(0, batch_size)
    if batch_size % (parts := mesh.shape["data"] * mesh.shape["fsdp"]):
        raise ValueError(f"a batch of {batch_size} cannot be split evenly over data * fsdp = {parts}")
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    rows = np.unique(np.concatenate([np.arange(batch_size)[index] for index in held]))
    one_run = slice(int(rows[0]), int(rows[-1]) + 1)
    return one_run if one_run.stop - one_run.start == len(rows) else rows


def stream(batch: BatchFn, start: int, stop: int, rows: Rows, workers: int, prefetch: int) -> Iterator[HostBatch]:
    """`batch(number, rows)` for the numbers from `start` to `stop` - 1, in order, made ahead of their use.

    A generator: closing it, or dropping it, ends its threads and processes. An error of `batch` is raised where its
    result would be due. Signals that reach the whole process group, as Ctrl-C does, leave the workers alone, so that
    batches go on coming until the caller stops; workers end themselves when this process dies.

    Args:
      workers: processes that make batches, each every `workers`-th of them; 0 makes them in a thread.
      prefetch: how many batches to keep ready, at least one; with workers, at least one each.

    Raises:
      ValueError: a negative number of workers, or of batches to keep ready.
      RuntimeError: a worker was killed; or what it raised cannot be sent here, and this says it in words.
    """
    if workers < 0 or prefetch < 0:
        raise ValueError(f"workers and prefetch must not be negative, are {workers} and {prefetch}")
    made = grain.MapDataset.range(start, stop).map(partial(_made, batch, rows))
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its debugging flags; nobody else parses them
        ready = math.ceil(max(1, prefetch) / workers)
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ready)
        dataset = made.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        dataset = dataset.mp_prefetch(options, worker_init_fn=_begin_worker)
    else:
        dataset = made.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=max(1, prefetch)))
    batches = _run(dataset)
    _open.add(batches)
    return batches


def to_device(batches: Iterable[HostBatch], mesh: Mesh | None, depth: int = 2) -> Iterator[HostBatch]:
    """The batches with their arrays on the devices: global arrays on `mesh`, rows over `data` and `fsdp`.

    A generator. Transfers are begun `depth` batches ahead, and run while the devices compute. Closing it closes
    `batches`, too.

    Args:
      batches: with the rows that `local_rows` names, on every process.
      mesh: None for arrays on the default device.
    """

    def put(batch: HostBatch) -> HostBatch:
        if mesh is None:
            return replace(batch, arrays=jax.device_put(batch.arrays))
        place = partial(jax.make_array_from_process_local_data, batch_sharding(mesh))
        return replace(batch, arrays=jax.tree.map(place, batch.arrays))

    ahead: collections.deque[HostBatch] = collections.deque()
    batches = iter(batches)
    try:
        for batch in batches:
            ahead.append(put(batch))
            if len(ahead) >= depth:
                yield ahead.popleft()
        yield from ahead
    finally:
        if hasattr(batches, "close"):
            batches.close()


_open: weakref.WeakSet[Iterator[HostBatch]] = weakref.WeakSet()


@atexit.register
def _close_open() -> None:
    """What nobody closed: later, Python takes Grain's modules away before its threads and processes have ended."""
    for batches in list(_open):
        batches.close()


def _run(dataset: grain.IterDataset) -> Iterator[HostBatch]:
    with contextlib.closing(iter(dataset)) as batches:
        with ThreadPoolExecutor(1) as starter:
            first = starter.submit(_first, batches).result()
        if first is not None:
            yield first
            yield from batches


def _first(batches: Iterator[HostBatch]) -> HostBatch | None:
    # Whatever Grain starts now inherits this. Ignoring the signals in the workers would come seconds after their start.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    return next(batches, None)


def _made(batch: BatchFn, rows: Rows, number: int) -> HostBatch:
    try:
        return batch(number, rows)
    except Exception as error:
        if multiprocessing.parent_process() is None or _can_travel(error):
            raise
        # A queue drops what it cannot pickle, and its reader would wait for ever.
        raise RuntimeError(f"batch {number}: {type(error).__name__}: {error}") from None


def _can_travel(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # an exception's arguments may be anything
        return False


def _begin_worker(index: int, count: int) -> None:
    """What a worker process does first."""
    # Accelerators belong to the main process: one touched here by mistake would be taken away from it.
    jax.config.update("jax_platforms", "cpu")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
