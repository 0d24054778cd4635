"""The folder of a run: what is settled of it, job by job, whatever kills it.

    OUT/settings.json     what holds for all edits: the model, steps, ...
    OUT/NAME.png          edited pictures
    OUT/results.jsonl     a line for each of them: what it was made of
    OUT/errors.jsonl      a line for each job that this run could not do; no file where there is none
    OUT/results-00001.jsonl, errors-00001.jsonl   lines of process 1, while there are several

A picture has its name only when it is whole, and its line is written after it. So a job is done if and only if its line
and its picture are there, the picture has the size that the line tells, and instruction, seed, expressive instruction
and the photo's bytes are those of the line: whatever of these has changed, the job is done again. The settings must not
change.

Lines are on disk before the next batch's. One that was cut short is dropped. In a bucket each batch's lines are an
object, for nothing can be appended to one; and nothing locks them, so that there the user must see to it that only one
run writes into a folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import IO, Any

from mgie_jax.batch.jobs import BatchError, Job
from mgie_jax.batch.settings import Settings
from mgie_jax.paths import AnyPath, Entry, entry, files, is_remote, make_folder
from mgie_jax.photo import is_unfinished
from mgie_jax.weights.atomic import sha256, write_text

SETTINGS, RESULTS, ERRORS = "settings.json", "results", "errors"
POLL_S, POLL_BUCKET_S = 0.2, 5.0

Record = dict[str, Any]


def check(folder: AnyPath, settings: Settings, jobs: Sequence[Job], overwrite: bool) -> None:
    """Nothing is written.

    Raises:
      BatchError: something else is in the folder, or a run with other settings, and `overwrite` is False.
    """
    if not is_remote(folder) and folder.exists() and not folder.is_dir():
        raise BatchError(f"{folder}: is a file; name a folder for the edited photos with -o")
    begun = _settings(folder)
    if overwrite or begun == asdict(settings):
        return
    if begun is not None:
        differing = [name for name, value in asdict(settings).items() if begun.get(name) != value]
        raise BatchError(
            f"{folder}: was begun with another {', '.join(differing)}; give the same as then, another folder, or "
            "--overwrite to begin anew"
        )
    there = files(folder) if is_remote(folder) or folder.is_dir() else {}
    if in_the_way := [name for name in (*(job.output for job in jobs), f"{RESULTS}.jsonl") if name in there]:
        raise BatchError(
            f"{folder / in_the_way[0]}: is there already, and no run of this kind has made it; choose another folder "
            "with -o, or --overwrite to replace it"
        )


@contextmanager
def begun(folder: AnyPath, settings: Settings) -> Iterator[None]:
    """For process 0: makes the folder ready and keeps other runs out of it; `check` has been called.

    Raises:
      BatchError: it cannot be written, or another run is writing there.
    """
    with ExitStack() as stack:
        try:
            make_folder(folder)
            with _locked(folder):
                if _settings(folder) != asdict(settings):
                    for name in [*_parts(folder, RESULTS), *_parts(folder, ERRORS)]:
                        (folder / name).unlink()
                    write_text(folder / SETTINGS, json.dumps(asdict(settings), indent=2) + "\n")
            stack.enter_context(_locked(folder))
            for name in [*_parts(folder, ERRORS), *filter(_is_left_over, files(folder))]:
                (folder / name).unlink()
            gather(folder, RESULTS, [])
        except OSError as error:
            raise BatchError(f"{folder}: cannot be written ({error.strerror or error})") from error
        yield


def read(folder: AnyPath, kind: str) -> dict[str, Record]:
    """{name of the edited picture: its line} of every process, the newest where there are several."""
    found = {}
    for name in _parts(folder, kind):
        for line in (folder / name).read_bytes().split(b"\n")[:-1]:  # behind the last newline: one cut short
            try:
                record = json.loads(line)
                found[record["output"]] = record
            except (ValueError, TypeError, KeyError):
                continue  # damaged by the machine's end, not ours: the job is done again
    return found


def gather(folder: AnyPath, kind: str, jobs: Sequence[Job]) -> dict[str, Record]:
    """All lines in one file, those of `jobs` first and in their order; returns them."""
    parts, found = _parts(folder, kind), read(folder, kind)
    order = {job.output: number for number, job in enumerate(jobs)}
    found = dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))
    if parts:
        write_text(folder / f"{kind}.jsonl", "".join(map(_line, found.values())))
    for name in parts:
        if name != f"{kind}.jsonl":
            (folder / name).unlink()
    return found


class Lines:
    """One process's own lines of a kind. The first process's stand where they are to be in the end."""

    def __init__(self, folder: AnyPath, kind: str, process: int):
        self._folder, self._name, self._file, self._number = folder, kind, None, 0
        if process or is_remote(folder):
            self._name += f"-{process:05}"

    def add(self, records: Iterable[Record]) -> None:
        """Write lines down for good."""
        content = "".join(map(_line, records))
        if is_remote(self._folder):
            (self._folder / f"{self._name}-{self._number:08}.jsonl").write_text(content)
            self._number += 1
            return
        if self._file is None:
            self._file = open(self._folder / f"{self._name}.jsonl", "ab")
        self._file.write(content.encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()


def photo_of(path: AnyPath) -> Record:
    """What tells a photo's bytes: size and time of its file and, but for a bucket's versions, its checksum.

    Raises:
      OSError, ValueError: there is no such photo.
    """
    found = entry(path)
    digest = None if is_remote(path) else sha256(path)
    return {"photo": str(path), "photo_bytes": found.size, "photo_version": found.version, "photo_sha256": digest}


def is_done(job: Job, record: Record | None, there: Mapping[str, Entry]) -> bool:
    """Whether a job's outcome is there.

    Args:
      record: its line.
      there: the files of the folder.
    """
    asked = {"instruction": job.instruction, "seed": job.seed, "given": job.expressive}
    if record is None or any(record.get(name, ...) != value for name, value in asked.items()):
        return False
    if job.output not in there or there[job.output].size != record.get("output_bytes"):
        return False
    try:
        now = entry(job.photo)
        if now.size != record.get("photo_bytes"):
            return False
        if now.version == record.get("photo_version"):
            return True
        # One that was copied or touched has another time, and is the same photo still.
        digest = record.get("photo_sha256")
        return digest is not None and photo_of(job.photo)["photo_sha256"] == digest
    except (OSError, ValueError):
        return False


def end(folder: AnyPath, process: int) -> None:
    """Say that a process has come to its end, and wait for process 0, which tidies up after all.

    The others leave after it: JAX would take its end for a failure of theirs otherwise.
    """
    mark = folder / _ended(process)
    mark.write_bytes(b"")
    while mark.exists():
        time.sleep(POLL_BUCKET_S if is_remote(folder) else POLL_S)


@contextmanager
def all_ended(folder: AnyPath, count: int) -> Iterator[None]:
    """For process 0: when the others have ended, the block; then they may leave."""
    marks = [folder / _ended(process) for process in range(1, count)]
    while not all(mark.exists() for mark in marks):
        time.sleep(POLL_BUCKET_S if is_remote(folder) else POLL_S)
    yield
    for mark in marks:
        mark.unlink()


def _ended(process: int) -> str:
    return f".ended-{process:05}"


def _is_left_over(name: str) -> bool:
    """Whether a file is of a run that was killed."""
    half = re.fullmatch(r"\.(settings\.json|results\.jsonl|errors\.jsonl|index\.html)\.new", name)
    return half is not None or name.startswith(".ended-") or is_unfinished(name)


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"


def _parts(folder: AnyPath, kind: str) -> list[str]:
    """Files with lines of a kind; the newest lines come last."""
    if not is_remote(folder) and not folder.is_dir():
        return []
    # Not `files` of a local folder: it looks at each file, and other processes' come and go.
    names = files(folder) if is_remote(folder) else sorted(path.name for path in folder.iterdir())
    found = [name for name in names if "/" not in name and name.endswith(".jsonl")]
    return [*(f"{kind}.jsonl" for name in found if name == f"{kind}.jsonl"),
            *(name for name in found if name.startswith(f"{kind}-"))]  # fmt: skip


def _settings(folder: AnyPath) -> dict | None:
    """None where there are none that can be read."""
    try:
        found = json.loads((folder / SETTINGS).read_bytes())
        return found if isinstance(found, dict) else {}
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


@contextmanager
def _locked(folder: AnyPath) -> Iterator[IO[bytes] | None]:
    """The settings' file, held against other runs; the system lets go of it when this process ends, however it does."""
    if is_remote(folder) or not (folder / SETTINGS).exists():
        yield None
        return
    with open(folder / SETTINGS, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BatchError(f"{folder}: another run is writing there; wait for it or choose another") from error
        yield file
