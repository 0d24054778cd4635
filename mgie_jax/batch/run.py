"""A whole run: what is left of a list of jobs, done by one process or by several that share a folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from mgie_jax.batch import order, pipeline, store
from mgie_jax.batch.extras import Extras, thumbnail
from mgie_jax.batch.jobs import Job
from mgie_jax.batch.page import PAGE, write_page
from mgie_jax.batch.settings import Settings, about
from mgie_jax.editor import EditResult
from mgie_jax.models.presets import MGIEConfig
from mgie_jax.paths import AnyPath, Entry, entry, files
from mgie_jax.photo import fit, fit_size, open_photo, save_atomic, upright_size

LOOKERS = 16  # threads that wait for a file system's answers

Progress = Callable[[int, int], None]
"""Called with how many of this process's jobs have come to their end, and how many there are."""


@dataclass(frozen=True)
class Outcome:
    """What there is at the end.

    Attributes:
      edited, failed: jobs of this run, on all processes.
      skipped: jobs that an earlier run had done.
      ran: this process's own work; None where nothing was left for it.
      load_seconds: that the model took.
      seconds: all else took, from the first look at the folder until every process has ended.
    """

    edited: int
    skipped: int
    failed: int
    ran: pipeline.Ran | None
    load_seconds: float
    seconds: float


def edit_all(
    jobs: Sequence[Job], out: AnyPath, settings: Settings, config: MGIEConfig, load: Callable[[], pipeline.Edits], *,
    batch_size: int,
    extras: Extras,
    overwrite: bool = False,
    process: int = 0,
    count: int = 1,
    sync: Callable[[str], None] = lambda name: None,
    progress: Progress = lambda done, total: None,
) -> Outcome:  # fmt: skip
    """Do whatever of `jobs` is not done, and write it to the folder `out`; see `store` for what is there then.

    Killed at any moment, the same call goes on. A photo that cannot be edited is told in errors.jsonl.

    Args:
      settings: what holds for all of them.
      config: of the model.
      load: the model; not called where nothing is left to do.
      batch_size: photos on the devices at a time.
      overwrite: replace what is in `out` of other settings.
      process, count: which of how many processes this is; each calls this, on one file system.
      sync: waits until every process has called it.

    Raises:
      BatchError: `out` is in use, cannot be written, or was made with other settings.
      PhotoError: a picture cannot be written.
    """
    began = time.perf_counter()
    with ExitStack() as stack:
        if process == 0:
            store.check(out, settings, jobs, overwrite)
            stack.enter_context(store.begun(out, settings))
        sync("begun")
        extras.make(out)
        there, lines = files(out), store.read(out, store.RESULTS)
        sync("looked")  # before anyone writes
        left, bare = _left(jobs, there, lines, extras)
        mine = order.share(left, process, count)
        for name in {thumbnail(job.output) for job in mine} & there.keys():  # it may be another photo's
            (out / name).unlink()
        progress(0, len(mine))
        ran, seconds = None, 0.0
        if mine:
            start = time.perf_counter()
            editor = load()
            seconds = time.perf_counter() - start
            ran = _run(mine, out, settings, config, editor, batch_size, extras, process, progress)
        _dress(order.share(bare, process, count), lines, out, config, extras)
        if process:
            store.end(out, process)
            failed = len(store.read(out, store.ERRORS))
        else:
            with store.all_ended(out, count):
                done = store.gather(out, store.RESULTS, jobs)
                broken = store.gather(out, store.ERRORS, jobs)
                if extras.html:
                    write_page(out / PAGE, done.values(), broken.values(), set(files(out)))
            failed = len(broken)
    spent = time.perf_counter() - began - seconds
    return Outcome(len(left) - failed, len(jobs) - len(left), failed, ran, seconds, spent)


def _left(
    jobs: Sequence[Job], there: Mapping[str, Entry], lines: Mapping[str, store.Record], extras: Extras
) -> tuple[list[Job], list[Job]]:
    """The jobs to do, and those that are done but lack what is to go with their pictures."""
    with ThreadPoolExecutor(LOOKERS) as pool:
        done = list(pool.map(lambda job: store.is_done(job, lines.get(job.output), there), jobs))
    left = [job for job, is_done in zip(jobs, done, strict=True) if not is_done]
    bare = [job for job, is_done in zip(jobs, done, strict=True) if is_done and extras.missing(job.output, there)]
    return left, bare


def _run(
    jobs: list[Job], out: AnyPath, settings: Settings, config: MGIEConfig, editor: pipeline.Edits, batch_size: int,
    extras: Extras, process: int, progress: Progress,
) -> pipeline.Ran:  # fmt: skip
    """The jobs of this process."""
    ended = 0

    def count(more: int) -> None:
        nonlocal ended
        ended += more
        progress(ended, len(jobs))

    def save(row: pipeline.Read, result: EditResult) -> store.Record:
        job, path = row.job, out / row.job.output
        save_atomic(result.image, path, about(job.instruction, result.expressive, job.seed, settings))
        extras.write(out, job.output, result.before, result.image, job.instruction, result.expressive)
        return {
            "output": job.output, **row.about, "instruction": job.instruction, "expressive": result.expressive,
            "seed": job.seed, "model": settings.model, "size": list(result.image.size), "note": result.note,
            "given": job.expressive, "output_bytes": entry(path).size,
        }  # fmt: skip

    with store.Lines(out, store.RESULTS, process) as results, store.Lines(out, store.ERRORS, process) as errors:

        def fail(broken: pipeline.Broken) -> None:
            job = broken.job
            errors.add([{
                "output": job.output, "line": job.line, "photo": str(job.photo), "instruction": job.instruction,
                "seed": job.seed, "error": broken.why,
            }])  # fmt: skip

        return pipeline.run(
            _groups(jobs, config, editor, batch_size), editor, settings.sampling,
            save=save, keep=results.add, fail=fail, progress=count,
        )  # fmt: skip


def _groups(jobs: list[Job], config: MGIEConfig, editor: pipeline.Edits, batch_size: int) -> list[order.Group]:
    def size(job: Job) -> order.Size | None:
        upright = upright_size(job.photo)
        return upright and fit_size(upright, config.sampling.resolution, config.photo_multiple)

    def width(job: Job) -> int:
        try:
            return editor.width(job.instruction, job.expressive)
        except ValueError:  # is told when its turn comes
            return 0

    with ThreadPoolExecutor(LOOKERS) as pool:
        sizes = dict(zip((job.output for job in jobs), pool.map(size, jobs), strict=True))
    return order.groups(jobs, lambda job: sizes[job.output], width, batch_size)


def _dress(
    jobs: list[Job], lines: Mapping[str, store.Record], out: AnyPath, config: MGIEConfig, extras: Extras
) -> None:
    """Makes what is to go with pictures of an earlier run."""

    def write(job: Job) -> None:
        before, _ = fit(open_photo(job.photo), config.sampling.resolution, config.photo_multiple)
        line = lines[job.output]
        extras.write(out, job.output, before, open_photo(out / job.output), line["instruction"], line["expressive"])

    with ThreadPoolExecutor(pipeline.THREADS) as pool:
        list(pool.map(write, jobs))
