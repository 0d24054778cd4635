"""The one way paths are made: local ones are pathlib's, `gs://` ones etils.epath's, read and written by gcsfs.

Both have `/`, `exists`, `open`, `read_text` and so on, so that most code takes either and says `AnyPath`. What differs
is here:

* A bucket has no folders, only objects whose names have slashes: there is nothing to make (`make_folder`), nothing to
  list but names (`files`), and no renaming of a folder. An object appears whole or not at all, as a renamed file does.
* So a folder of several objects is safe to write there only under its final name, with the file that makes it what it
  is written last, and removed first where it is replaced; readers want that file. What does so:
      model directories      model_index.json         weights.atomic.new_folder
      data sets              dataset_info.json        weights.atomic.publish
      checkpoints            commit_success.txt       orbax
* Nothing can be appended to an object: logs are kept in a local folder and copied (`train.mirror`), and a preparation's
  batches are an object each (`data.parts`).
* Nothing locks: two runs in one place are the user's to avoid.

Credentials are Google's application default ones, as on any machine of Google Cloud. The account needs, beside reading
and writing objects, to see the bucket itself (`storage.buckets.get`): orbax asks of what kind it is.
"""

import argparse
import importlib.util
import os
import re
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import TypeAlias

REMOTE = "gs://"
REMEDY = "pip install 'mgie_jax[gcs]'"

AnyPath: TypeAlias = PurePath
"""A `pathlib.Path` or an `epath.Path`, which this is all they have in common by name; made by `to_path`."""


class PathError(ValueError):
    """A path that cannot be used here; the message names it and what to do."""


def to_path(path: str | os.PathLike) -> AnyPath:
    """`path` as something to read and write: a local path, or a place in a bucket as `gs://BUCKET/NAME`.

    Raises:
        PathError: what reads buckets is not installed; no bucket is named; or it is another kind of address.
    """
    text = os.fspath(path)
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        return Path(path)
    if not text.startswith(REMOTE):
        raise PathError(f"{text}: only local paths and gs://BUCKET/NAME are understood; copy it to one of them")
    if not text.removeprefix(REMOTE).split("/")[0]:
        raise PathError(f"{text}: names no bucket; give it as gs://BUCKET/NAME")
    if not _reads_buckets():
        raise PathError(f"{text}: what reads and writes gs:// is not installed: {REMEDY}")
    from etils import epath

    return epath.Path(text)


def argument(text: str) -> AnyPath:
    """`to_path` for argparse, which shows the message of no other error."""
    try:
        return to_path(text)
    except PathError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def is_remote(path: str | os.PathLike) -> bool:
    """Whether `path` is in a bucket."""
    return os.fspath(path).startswith(REMOTE)


def local(path: str | os.PathLike, what: str) -> Path:
    """`path`, which must be a local one.

    Raises:
        PathError: it is in a bucket; `what` begins the sentence that says why not.
    """
    if is_remote(path):
        raise PathError(f"{os.fspath(path)}: {what}; copy it to a local folder (gcloud storage cp -r)")
    return Path(path)


def absolute(path: str | os.PathLike) -> AnyPath:
    """The path from the root on, wherever the working directory moves; links stay as they are."""
    return to_path(path) if is_remote(path) else Path(path).absolute()


def is_within(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    """Whether `path` is `folder` or below it, once links are followed."""
    if is_remote(path) != is_remote(folder):
        return False
    if is_remote(path):
        return to_path(path).is_relative_to(to_path(folder))
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def is_same(path: AnyPath, other: AnyPath) -> bool:
    """Whether both are one existing file."""
    if is_remote(path) or is_remote(other):
        return str(path) == str(other) and path.exists()
    return path.exists() and path.samefile(other)


def is_folder(path: AnyPath) -> bool:
    """Whether there is a folder; no, too, where the path is none that the system can look at."""
    return path.is_dir() if is_remote(path) else os.path.isdir(path)


def make_folder(path: AnyPath) -> None:
    """Makes a folder and those above it, if they are not there."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def remove(path: AnyPath) -> None:
    """Removes a folder and all that is in it; nothing happens where there is none."""
    if is_remote(path):
        path.rmtree(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def move(path: AnyPath, to: AnyPath) -> None:
    """Gives a folder another name, at once if it is local; in a bucket one object after the other.

    There, killed in the midst of it, the same call goes on.
    """
    path.rename(to) if not is_remote(path) else gcs().mv(str(path), str(to), recursive=True)


@dataclass(frozen=True)
class Entry:
    """A file: its size in bytes, and a number that is another one when its content is."""

    size: int
    version: int


def entry(path: AnyPath) -> Entry:
    """Of one file. Raises FileNotFoundError where there is none."""
    if is_remote(path):
        return _entry(gcs().info(str(path)))
    info = path.stat()
    return Entry(info.st_size, info.st_mtime_ns)


def files(folder: AnyPath) -> dict[str, Entry]:
    """{name below `folder`, with slashes: its entry} of every file there, at any depth, in order."""
    if not is_remote(folder):
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): entry(path) for path in found}
    above = str(folder).removeprefix(REMOTE).rstrip("/") + "/"
    found = gcs().find(str(folder), detail=True)
    names = sorted((name for name in found if name.startswith(above)), key=lambda name: name.split("/"))
    return {name.removeprefix(above): _entry(found[name]) for name in names}


def cache_home() -> Path:
    """The user's folder for what can be made or fetched again: $XDG_CACHE_HOME/mgie-jax, or below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mgie-jax"


def gcs():
    """The file system that `gs://` paths use, for what they cannot do: parts of files, lists, unfinished writes."""
    import fsspec

    return fsspec.filesystem("gcs", finalize_on_close=True)  # epath's own arguments: they share one


def _entry(info: dict) -> Entry:
    return Entry(int(info["size"]), int(info.get("generation") or 0))


@cache
def _reads_buckets() -> bool:
    if any(importlib.util.find_spec(name) is None for name in ("etils", "fsspec", "gcsfs")):
        return False
    import fsspec

    # Listings kept in memory would hide what other processes have written since.
    for protocol in ("gs", "gcs"):
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    return True
