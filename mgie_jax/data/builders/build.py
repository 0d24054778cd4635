"""Build a data set: choose the builder, keep others away, leave all of it or nothing."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mgie_jax.data.builders.base import LOG, PairBuilder
from mgie_jax.data.builders.generated import Generated
from mgie_jax.data.builders.ipr2pr import IPr2Pr
from mgie_jax.data.builders.magicbrush import MagicBrush
from mgie_jax.data.builders.requests import EVR, GIER, MA5k
from mgie_jax.data.records import INCOMPLETE, INFO, DataSetError
from mgie_jax.paths import AnyPath, files, is_remote, local, to_path
from mgie_jax.weights.atomic import copy_file, is_there, publish

BUILDERS: dict[str, type[PairBuilder]] = {
    builder.name: builder for builder in (IPr2Pr, MagicBrush, EVR, GIER, MA5k, Generated)
}


@dataclass(frozen=True)
class Built:
    """What a build left.

    Attributes:
      path: the data set's own folder.
      splits: split -> number of examples.
      skipped: number of examples left out, listed in `log`; `log` is None where there are none.
      bytes: size of the data set's files.
    """

    path: AnyPath
    splits: dict[str, int]
    skipped: int
    log: AnyPath | None
    bytes: int


def build(
    name: str,
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    splits: Sequence[str] = (),
    max_skipped: float = 0.05,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> Built:
    """Write the data set `name` from its published files to `out`/`name`/VERSION, for `records.load` to read.

    A build that fails, or is killed, leaves nothing that loads; the next one clears away what it left.

    Args:
      name: one of `BUILDERS`.
      source: where the published files lie, on disk; of "generated" a bucket will do.
      out: made if absent; may hold other data sets. What goes to a bucket is written to the temporary folder first,
        which must have room for it.
      splits: those to build; none means every one that is there.
      max_skipped: the share of all examples that may be skipped, 0 to 1.
      progress: called with the number of examples seen and of all, after each.
      options: further arguments of the builder.

    Raises:
      DataSetError: the name or a split is unknown, the source is missing or laid out otherwise, the data set is
        there already or being built, it cannot be written, or too many of its examples are no good.
    """
    if name not in BUILDERS:
        raise DataSetError(f"there is no data set {name!r}; there are {', '.join(BUILDERS)}")
    if not 0 <= max_skipped <= 1:
        raise DataSetError(f"the share that may be skipped must be between 0 and 1, not {max_skipped}")
    source = to_path(source) if name == Generated.name else local(source, "published files are read from disk")
    out = to_path(out)
    home = out / name
    path = home / str(BUILDERS[name].VERSION)
    if not source.is_dir():
        raise DataSetError(f"{source}: there is no such folder")
    if is_there(path, INFO):
        raise DataSetError(f"{path}: exists already; choose another place, or remove it first")
    if is_remote(out):
        arguments = {"splits": splits, "max_skipped": max_skipped, "progress": progress, **options}
        return _built_here(name, source, out, path, arguments)
    # What tensorflow-datasets prints is of no use to the caller.
    with _alone(home), tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        for left in home.glob(f"{INCOMPLETE}*"):
            shutil.rmtree(left)
        builder = BUILDERS[name](
            data_dir=out, source=source, splits=splits, max_skipped=max_skipped, progress=progress, **options
        )
        builder.download_and_prepare(download_dir=scratch)
    return Built(
        path=path,
        splits={split: info.num_examples for split, info in builder.info.splits.items()},
        skipped=builder.skipped.count,
        log=home / LOG if builder.skipped.count else None,
        bytes=sum(entry.size for entry in files(path).values()),
    )


def _built_here(name: str, source: AnyPath, out: AnyPath, path: AnyPath, arguments: dict[str, Any]) -> Built:
    """`build` in a temporary folder, and what it left copied to a bucket."""
    log = path.parent / LOG
    with tempfile.TemporaryDirectory() as here:
        try:
            built = build(name, source, here, **arguments)
        except DataSetError as error:
            raise DataSetError(str(error).replace(here, str(out))) from error
        finally:
            if (Path(here) / name / LOG).exists():
                copy_file(Path(here) / name / LOG, log)
        publish(built.path, path, INFO)
    return replace(built, path=path, log=built.log and log)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make a folder and hold it against other builds; the system lets go of it when this process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DataSetError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataSetError(f"{folder}: another build is writing there; wait for it") from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()
    finally:
        os.close(lock)
