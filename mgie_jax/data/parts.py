"""The folder of a preparation under way: what is settled of it, batch by batch, whatever kills it.

    OUT.parts/settings.json          what was asked for, and of which data and models
    OUT.parts/part-00000.jsonl       batches that process 0 has finished, a line each
    OUT.parts/ended-00000-of-00001   process 0 of 1 has finished its share

A line is on disk before the next batch begins. One that was cut short is dropped, and its batch done again. In a bucket
each line is an object, part-00000-SPLIT-START-NUMBER.jsonl, for nothing can be appended to one; and nothing locks them,
so that there the user must see to it that only one preparation writes into a folder.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, Any

from mgie_jax.data.records import DataSetError
from mgie_jax.paths import REMOTE, AnyPath, absolute, files, gcs, is_remote, make_folder, remove
from mgie_jax.weights.atomic import write_text

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Batch:
    """A batch that was asked and answered.

    Attributes:
      split, start: its window: the split, and the number of the window's first example.
      number, of: which batch of its window it is, and how many the window has.
      written: (number of the example in its split, id, expressive instruction, whether the MLLM said nothing).
      skipped: (number, id, reason) of what no batch of the window holds; told with the window's first.
    """

    split: str
    start: int
    number: int
    of: int
    written: tuple[tuple[int, str, str, bool], ...]
    skipped: tuple[tuple[int, str, str], ...]

    @property
    def key(self) -> tuple[str, int, int]:
        return self.split, self.start, self.number


def folder_of(out: AnyPath) -> AnyPath:
    """Where the parts of the data set `out` are gathered."""
    out = absolute(out)
    return out.with_name(f"{out.name}.parts")


def check(folder: AnyPath, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Nothing is written. Raises DataSetError where `folder` is of a preparation with other settings."""
    begun = _settings(folder)
    differing = [name for name in settings if begun is not None and begun.get(name) != settings[name]]
    if differing and not overwrite:
        raise DataSetError(
            f"{folder}: was begun with another {', '.join(differing)}; give the same as then, or --overwrite to begin "
            "anew"
        )


def begin(folder: AnyPath, settings: Mapping[str, Any]) -> None:
    """Make the folder; one with other settings is replaced. Processes begin once this has returned.

    Raises:
      DataSetError: it cannot be written, or another process is writing there.
    """
    try:
        if _settings(folder) != settings:
            for part in () if is_remote(folder) else folder.glob("part-*.jsonl"):
                with open(part, "ab") as file:
                    _lock(file, folder)
            remove(folder)
            make_folder(folder)
            write_text(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")
        for ended in folder.glob("ended-*"):
            ended.unlink()
    except OSError as error:
        raise DataSetError(f"{folder}: cannot be written ({error.strerror or error})") from error


def read(folder: AnyPath) -> dict[tuple[str, int, int], Batch]:
    """Every finished batch by its key, of whichever process.

    Raises:
      DataSetError: a line is damaged that is not the last of its file.
    """
    batches = {}
    for part, content in _contents(folder):
        for line in content.split(b"\n")[:-1]:  # behind the last newline: nothing, or a line cut short
            try:
                fields = json.loads(line)
                rows = {name: tuple(map(tuple, fields[name])) for name in ("written", "skipped")}
                batch = Batch(**fields | rows)
            except (ValueError, TypeError, KeyError) as error:
                raise DataSetError(f"{part}: is damaged at {line[:60]!r}; remove it and run this again") from error
            batches.setdefault(batch.key, batch)
    return batches


def _contents(folder: AnyPath) -> Iterator[tuple[AnyPath, bytes]]:
    names = [name for name in files(folder) if name.startswith("part-") and "/" not in name]
    if is_remote(folder) and names:  # many small ones: all at once
        found = gcs().cat([str(folder / name) for name in names])
        yield from ((folder / name, found[str(folder / name).removeprefix(REMOTE)]) for name in names)
    else:
        yield from ((folder / name, (folder / name).read_bytes()) for name in names)


class Part:
    """One process's own file, held against others while it is open."""

    def __init__(self, file: IO[bytes]):
        self._file = file

    def add(self, batch: Batch) -> None:
        """Write a batch down for good."""
        self._file.write(_line(batch))
        self._file.flush()
        os.fsync(self._file.fileno())


class BucketPart:
    """One process's own objects, one for each batch."""

    def __init__(self, folder: AnyPath, process: int):
        self._folder, self._process = folder, process

    def add(self, batch: Batch) -> None:
        """Write a batch down for good."""
        name = f"part-{self._process:05}-{batch.split}-{batch.start}-{batch.number}.jsonl"
        (self._folder / name).write_bytes(_line(batch))


def _line(batch: Batch) -> bytes:
    return json.dumps(asdict(batch), ensure_ascii=False).encode() + b"\n"


@contextmanager
def part(folder: AnyPath, process: int) -> Iterator[Part | BucketPart]:
    """The file of a process, without what an earlier run left of a line.

    Raises:
      DataSetError: another process has it.
    """
    if is_remote(folder):
        yield BucketPart(folder, process)
        return
    with open(folder / f"part-{process:05}.jsonl", "a+b") as file:
        _lock(file, folder)
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        yield Part(file)


def end(folder: AnyPath, process: int, count: int) -> None:
    """Say that a process has finished its share."""
    (folder / _ended(process, count)).write_bytes(b"")


def all_ended(folder: AnyPath, count: int) -> bool:
    """Whether every process has finished its share."""
    return all((folder / _ended(process, count)).exists() for process in range(count))


def _ended(process: int, count: int) -> str:
    return f"ended-{process:05}-of-{count:05}"


def _settings(folder: AnyPath) -> dict | None:
    """None where there are none that can be read: they are written first, so nothing is lost then."""
    try:
        return json.loads((folder / SETTINGS).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _lock(file: IO[bytes], folder: AnyPath) -> None:
    """The system lets go of it when this process ends, however it does."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataSetError(f"{folder}: another `mgie prepare` is writing there; wait for it") from error
