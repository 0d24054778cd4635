"""What a published data set offers, before anyone has looked whether it is any good.

A layout is a function from a folder to its splits, each a list of `Candidate`s. `examine` reads one of them and
says what is wrong with it; only records that it passes are written.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from mgie_jax.data.records import DataSetError
from mgie_jax.photo import PhotoError, decode_photo

# Of an instruction, and of an expressive one: far beyond what fits a prompt, whatever the tokenizer.
MAX_CHARACTERS = 1000
# Files are kept as they are where they begin so; other formats become PNG.
_KEPT = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


@dataclass(frozen=True, slots=True)
class Pair:
    """The fields of a record as they were found; see `records.Example`."""

    source: bytes
    target: bytes
    instruction: Any
    expressive: Any = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An example that may turn out to be broken.

    Attributes:
      id: should be unique within its split.
      read: called once, on any thread. Raises OSError or ValueError for what is missing or damaged.
    """

    id: str
    read: Callable[[], Pair]


Splits = dict[str, Sequence[Candidate]]


def examine(candidate: Candidate) -> dict[str, Any] | str:
    """The record of a candidate, or in words why it must be skipped.

    Pictures are decoded to the last row; texts lose blanks at their ends and may be at most `MAX_CHARACTERS` long.
    """
    try:
        pair = candidate.read()
        return {
            "id": candidate.id,
            "source": _picture(pair.source, "the picture before"),
            "target": _picture(pair.target, "the picture after"),
            "instruction": _text(pair.instruction, "instruction", required=True),
            "expressive": _text(pair.expressive, "expressive instruction", required=False),
        }
    except FileNotFoundError as error:
        return f"{error.filename}: there is no such file"
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__


def read_files(before: Path, after: Path, instruction: Any, expressive: Any = "") -> Pair:
    """A pair whose pictures are files."""
    return Pair(before.read_bytes(), after.read_bytes(), instruction, expressive)


def member(folder: Path, name: Any) -> Path:
    """The file `name` of a folder. Raises ValueError where the name leads out of the folder, or is none."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"names no file but {name!r}")
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"names a file outside its folder, {name!r}")
    return folder / relative


def read_json(path: Path, kind: type) -> Any:
    """What a JSON file holds. Raises DataSetError where that cannot be read or is not of type `kind`."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataSetError(f"{path}: there is no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataSetError(f"{path}: cannot be read as JSON ({error}); download it again") from error
    if not isinstance(content, kind):
        raise DataSetError(f"{path}: should hold a {kind.__name__}, not a {type(content).__name__}")
    return content


def read_rows(path: Path, keys: Sequence[str]) -> list[dict]:
    """The rows of a JSON list of objects. Raises DataSetError where it is none, or where a row lacks a key."""
    rows = read_json(path, list)
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or any(key not in row for key in keys):
            raise DataSetError(f"{path}: row {number} should be an object with {', '.join(keys)}")
    return rows


def first_file(*paths: Path) -> Path | None:
    """The first of several files that exists."""
    return next((path for path in paths if path.is_file()), None)


def as_png(image: Image.Image) -> bytes:
    """A picture as a PNG file."""
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()


def _picture(content: bytes, what: str) -> bytes:
    try:
        image = decode_photo(content, what)
    except PhotoError as error:
        raise ValueError(str(error).split(";")[0]) from error
    return content if content.startswith(_KEPT) else as_png(image)


def _text(text: Any, what: str, required: bool) -> str:
    if not isinstance(text, str):
        raise ValueError(f"the {what} is not a text but {text!r:.60}")
    text = text.strip()
    if required and not text:
        raise ValueError(f"the {what} is empty")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the {what} has {len(text)} characters, more than {MAX_CHARACTERS}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the {what} is not valid Unicode") from error
    return text
