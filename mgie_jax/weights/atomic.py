"""Files and folders that have their name only once they are whole, and checksums of what was written."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mgie_jax.weights.tensor import ModelDirError

# In the form of `sha256sum`, so that `sha256sum -c SHA256SUMS` needs nothing of ours; and in a file of its own,
# since no file can hold its own checksum and model_index.json must have one too.
SUMS = "SHA256SUMS"


@contextmanager
def new_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A hidden folder beside `path`, which takes its name when the block ends, and goes if it raises.

    Whatever interrupts it, `path` is the old folder, the new one, or (for an instant, while one replaces the
    other) nothing.

    Raises:
      ModelDirError: there is something at `path` and `overwrite` is False.
    """
    path = Path(path).absolute()
    if path.exists() and not overwrite:
        raise ModelDirError(f"{path} exists already; choose another name or ask to overwrite it")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        yield new
        new.chmod(0o777 & ~_umask())
        _replace(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _replace(new: Path, path: Path) -> None:
    """`new` gets the name `path`; what had it is removed."""
    if not path.exists():
        new.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
    path.rename(old / path.name)
    try:
        new.rename(path)
    except OSError:
        (old / path.name).rename(path)
        raise
    shutil.rmtree(old)


def _umask() -> int:
    # Reading the umask means setting it; mkdtemp's 0700 would hide the model from its owner's group.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> str:
    """Writes a file at once and returns its sha256."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: Path) -> str:
    """A file's checksum, in hexadecimal, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Writes {file below `folder`: sha256} where `read_sums` and `sha256sum -c` find it."""
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))


def read_sums(folder: Path) -> dict[str, str] | None:
    """{file: sha256} as `write_sums` left it; None where `folder` has none.

    Raises:
      ModelDirError: the file is damaged.
    """
    path = folder / SUMS
    if not path.exists():
        return None
    sums: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise ModelDirError(f"{path} cannot be read: {error}") from error
    for line in lines[:-1] if lines[-1] == "" else lines:
        found = re.fullmatch(r"([0-9a-f]{64})  ([^/\s][^\s]*)", line)
        if found is None or found[2] in sums or ".." in Path(found[2]).parts:
            raise ModelDirError(f"{path} is damaged at {line[:99]!r}; write or download the model anew")
        sums[found[2]] = found[1]
    return sums
