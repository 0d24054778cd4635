"""What is to be edited: a list of jobs in a JSONL file, or every photo of a folder.

A line of the list is an object:

    {"photo": "cat.jpg", "instruction": "make it warmer"}
    {"photo": "/photos/dog.png", "instruction": "sepia", "seed": 7, "expressive": "It turns brown.", "output": "d.webp"}

`photo` is relative to the list's own folder. `seed`, `expressive` (an expressive instruction to be used as it is) and
`output` (the name of the edited picture's file, which chooses its format) may be left out. Empty lines are passed over.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mgie_jax.paths import AnyPath, files, is_remote, to_path
from mgie_jax.photo import SAVE_FORMATS

FIELDS = ("photo", "instruction", "seed", "expressive", "output")
# What is a photo among the files of a folder; whatever else Pillow reads can be named in a list.
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif", ".jp2")
MAX_CHARACTERS = 1000
MAX_SEED = 2**32 - 1
MAX_NAME = 160  # bytes: file systems take 255, and names get endings
TOLD = 50  # errors


class BatchError(ValueError):
    """A list of jobs, or the folder for their outcome, will not do; the message says where and what to do."""


@dataclass(frozen=True)
class Job:
    """One edit.

    Attributes:
      line: of the list, or the photo's place in its folder, counted from 1.
      expressive: None where it is to be written.
      output: the name of the edited picture's file; no other job has it.
    """

    line: int
    photo: AnyPath
    instruction: str
    seed: int
    expressive: str | None
    output: str


def words(name: str, text: str) -> str:
    """Whitespace and control characters evened out.

    Raises:
      ValueError: nothing is left, too much is, or it is not valid text; the message calls it `name`.
    """
    kept = " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", text).split())
    if not kept:
        raise ValueError(f'{name} is empty; say what to change, such as "make it brighter"')
    if len(kept) > MAX_CHARACTERS:
        raise ValueError(f"{name} has {len(kept)} characters; shorten it to at most {MAX_CHARACTERS}")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in kept):  # bytes that were not UTF-8
        raise ValueError(f"{name} is not valid UTF-8 text")
    return kept


def read_jobs(path: AnyPath, seed: int) -> list[Job]:
    """The jobs of a list, in its order; `seed` is for lines without one.

    Raises:
      BatchError: the file cannot be read, or lines are wrong; all of them are told.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BatchError(f"{path}: cannot be read ({error.strerror or error})") from error
    found, wrong, names = [], [], _Names()
    lines = [(number, line) for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)]
    lines = [(number, line) for number, line in lines if line.strip()]
    rows = []
    for number, line in lines:
        try:
            fields = _fields(line)
            rows.append((number, fields))
            if "output" in fields:
                names.take(fields["output"])
        except ValueError as error:
            wrong.append((number, str(error)))
    for number, fields in rows:
        output = fields.get("output") or names.of(fields["photo"])
        photo = to_path(fields["photo"])
        photo = photo if is_remote(photo) else path.parent / photo
        job = Job(number, photo, fields["instruction"], fields.get("seed", seed), fields.get("expressive"), output)
        found.append(job)
    if wrong:
        told = "; ".join(f"line {number}: {why}" for number, why in sorted(wrong)[:TOLD])
        more = f"; and {len(wrong) - TOLD} more" if len(wrong) > TOLD else ""
        raise BatchError(f"{path}: {len(wrong)} of {len(lines)} lines are wrong: {told}{more}")
    if not found:
        raise BatchError(f'{path}: has no jobs; write a line {{"photo": ..., "instruction": ...}} for each edit')
    return found


def folder_jobs(folder: AnyPath, instruction: str, seed: int, expressive: str | None) -> list[Job]:
    """A job for each photo that lies in the folder itself, by name.

    Raises:
      BatchError: there is none, or the folder cannot be read.
    """
    try:
        listed = files(folder) if is_remote(folder) else [path.name for path in folder.iterdir() if path.is_file()]
    except OSError as error:
        raise BatchError(f"{folder}: cannot be read ({error.strerror or error})") from error
    photos = sorted(
        name for name in listed
        if "/" not in name and not name.startswith(".") and name.lower().endswith(SUFFIXES)
    )  # fmt: skip
    if not photos:
        raise BatchError(f"{folder}: holds no photos ({' '.join(SUFFIXES)})")
    names = _Names()
    return [
        Job(number, folder / name, instruction, seed, expressive, names.of(name))
        for number, name in enumerate(photos, 1)
    ]


def _fields(line: bytes) -> dict[str, Any]:
    """What a line says, checked and with its texts evened out. Raises ValueError with what is wrong."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError("is no JSON object")
    if unknown := [name for name in fields if name not in FIELDS]:
        raise ValueError(f"has {unknown[0]!r}, which is none of {', '.join(FIELDS)}")
    fields = {name: value for name, value in fields.items() if value is not None}
    for name in FIELDS:
        if name in fields and name != "seed" and not isinstance(fields[name], str):
            raise ValueError(f"{name} must be a text, not {json.dumps(fields[name])[:40]}")
    for name in ("photo", "instruction"):
        if name not in fields:
            raise ValueError(f"lacks {name}")
    if not fields["photo"].strip() or "\0" in fields["photo"]:
        raise ValueError("photo names no file")
    os.fsencode(to_path(fields["photo"]))  # what cannot be a path says so
    seed = fields.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be a whole number from 0 to {MAX_SEED}, not {json.dumps(seed)[:40]}")
    return fields | {name: words(name, fields[name]) for name in ("instruction", "expressive") if name in fields}


class _Names:
    """Names of files for the edited pictures: each once, also where a file system knows no upper and lower case."""

    def __init__(self):
        self._taken: set[str] = set()
        self._numbers: dict[str, int] = {}

    def take(self, name: str) -> None:
        """One that a line asks for. Raises ValueError where it cannot have it."""
        plain = re.fullmatch(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*", name)
        if plain is None or len(name.encode("utf-8", "replace")) > MAX_NAME:
            raise ValueError(f"output {name[:40]!r} must be the name of a file, without folders")
        if not name.lower().endswith(tuple(SAVE_FORMATS)):
            raise ValueError(f"output {name!r} must end in one of {' '.join(SAVE_FORMATS)}")
        if name.casefold() in self._taken:
            raise ValueError(f"output {name!r} is that of another line")
        self._taken.add(name.casefold())

    def of(self, photo: str) -> str:
        """cat.png for cat.jpg, then cat-2.png: further lines at the end of a list leave those before them theirs."""
        stem = to_path(photo).stem.lstrip(".") or "photo"
        stem = re.sub(r"[\x00-\x1f\x7f\\]", "_", stem.encode("utf-8", "replace").decode())
        stem = stem.encode()[: MAX_NAME - 16].decode("utf-8", "ignore")
        number = self._numbers.get(stem, 0) + 1
        while (name := f"{stem}.png" if number == 1 else f"{stem}-{number}.png").casefold() in self._taken:
            number += 1
        self._numbers[stem] = number
        self._taken.add(name.casefold())
        return name


def check_apart(jobs: Sequence[Job], folder: AnyPath, further: Callable[[str], Sequence[str]]) -> None:
    """Raises BatchError where a picture would be written over a photo of the list, or over another picture.

    Args:
      further: names of the other files that go with an edited picture of that name.
    """
    places = {job.output.casefold() for job in jobs}
    photos = {_place(job.photo) for job in jobs}
    for job, name in _written(jobs, further):
        if _place(folder / name) in photos:
            raise BatchError(f"{folder / name}: is one of the photos (line {job.line}); choose another folder with -o")
        if name != job.output and name.casefold() in places:
            raise BatchError(f"{folder / name}: goes with line {job.line}, but is another line's edited picture")


def _written(jobs: Sequence[Job], further: Callable[[str], Sequence[str]]) -> Iterator[tuple[Job, str]]:
    for job in jobs:
        for name in (job.output, *further(job.output)):
            yield job, name


def _place(path: AnyPath) -> str:
    return str(path) if is_remote(path) else os.path.realpath(path)
