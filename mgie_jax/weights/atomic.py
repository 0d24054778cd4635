"""Files and folders that have their name only once they are whole, and checksums of what was written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mgie_jax.paths import AnyPath, absolute, files, gcs, is_remote, remove
from mgie_jax.weights import bucket_files
from mgie_jax.weights.tensor import ModelDirError

# In the form of `sha256sum`, so that `sha256sum -c SHA256SUMS` needs nothing of ours; and in a file of its own,
# since no file can hold its own checksum and model_index.json must have one too.
SUMS = "SHA256SUMS"
WRITING = ".mgie-writing"
WRITE_BLOCK = 2**25  # bytes sent to a bucket at a time


@contextmanager
def new_folder(path: str | os.PathLike, marker: str, overwrite: bool = False) -> Iterator[AnyPath]:
    """A folder to fill, which takes the name `path` when the block ends, and goes if it raises.

    Locally it is a hidden folder beside `path`: whatever interrupts it, `path` is the old folder, the new one, or (for
    an instant, while one replaces the other) nothing.

    A bucket has no folders to rename. There it is `path` itself, and what was there is removed first: whatever
    interrupts it, `path` is the old folder, the new one, or has no `marker`. What a killed writer left is told from a
    folder of something else by the object `WRITING` in it, and replaced.

    Args:
      marker: the file of the folder that its readers want. In a bucket it is removed first, and the caller must write
        it last.
      overwrite: replace what is at `path`.

    Raises:
      ModelDirError: there is something at `path` and `overwrite` is False.
    """
    path = absolute(path)
    if is_there(path, marker) and not overwrite:
        raise ModelDirError(f"{path} exists already; choose another name or ask to overwrite it")
    if is_remote(path):
        with _new_in_bucket(path, marker):
            yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        yield new
        new.chmod(0o777 & ~_umask())
        _replace(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def is_there(path: AnyPath, marker: str) -> bool:
    """Whether anything is at `path` but what a killed `new_folder` left in a bucket."""
    if not path.exists():
        return False
    return not is_remote(path) or not (path / WRITING).exists() or (path / marker).exists()


def publish(folder: Path, path: AnyPath, marker: str, overwrite: bool = False) -> None:
    """Copies a whole local folder to a bucket; see `new_folder`."""
    with new_folder(path, marker, overwrite) as new:
        names = [name for name in files(folder) if name != marker]
        gcs().put([str(folder / name) for name in names], [str(new / name) for name in names])
        gcs().put_file(str(folder / marker), str(new / marker))


@contextmanager
def _new_in_bucket(path: AnyPath, marker: str) -> Iterator[None]:
    (path / marker).unlink(missing_ok=True)
    remove(path)
    (path / WRITING).write_text("")
    try:
        yield
        (path / WRITING).unlink()
    except BaseException:
        with suppress(Exception):  # the first error is the one to tell
            remove(path)
        raise


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


@contextmanager
def writing(path: AnyPath) -> Iterator[IO[bytes]]:
    """A new file, which has its name once the block has ended; if it raises, `path` is as it was."""
    if is_remote(path):
        file = gcs().open(str(path), "wb", block_size=WRITE_BLOCK)
        try:
            yield file
        except BaseException:
            file.discard()
            file.closed = True  # of one that was not begun to be sent `discard` does not say so, and it would be sent
            raise
        file.close()
        return
    new = path.with_name(f".{path.name}.new")
    try:
        with open(new, "wb") as file:
            yield file
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def write_text(path: AnyPath, text: str) -> str:
    """Writes a file at once and returns its sha256."""
    data = text.encode()
    with writing(path) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def copy_file(path: AnyPath, to: AnyPath) -> str:
    """Copies a small file and returns its sha256."""
    data = path.read_bytes()
    with writing(to) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def sha256(path: AnyPath) -> str:
    """A file's checksum, in hexadecimal, as `sha256sum` prints it."""
    if is_remote(path):
        return bucket_files.sha256(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: AnyPath, sums: Mapping[str, str]) -> None:
    """Writes {file below `folder`: sha256} where `read_sums` and `sha256sum -c` find it."""
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))


def read_sums(folder: AnyPath) -> dict[str, str] | None:
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


def fingerprint(folder: AnyPath) -> str:
    """Of a model's folder: of its SHA256SUMS where it has them, else of its files' names, sizes and times."""
    if (folder / SUMS).is_file():
        return hashlib.sha256((folder / SUMS).read_bytes()).hexdigest()
    listed = [(name, entry.size, entry.version) for name, entry in files(folder).items()]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
