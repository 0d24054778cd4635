"""What grows line by line, for a work folder in a bucket, where nothing can be appended to."""

import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from mgie_jax.paths import AnyPath, Entry, files, is_remote, to_path
from mgie_jax.weights.atomic import copy_file

EVERY_S = 20.0


class Mirror:
    """A local folder whose files show in a work folder: of a local one it is that folder itself.

    Else it is a temporary one, and files are copied whole, in a thread, when they have changed. What a killed run wrote
    since the last copy is lost, but for what its pictures, checkpoints and reports of bad batches say: those go to the
    bucket themselves.

    Args:
        workdir: the work folder.
        kept: names of files that a resumed run goes on with, which are fetched.
    """

    def __init__(self, workdir: str | AnyPath, kept: Sequence[str] = ()):
        self.workdir = to_path(workdir)
        self._remote = is_remote(self.workdir)
        self.folder = Path(tempfile.mkdtemp(prefix="mgie-log-")) if self._remote else self.workdir
        self._pool, self._copying = ThreadPoolExecutor(1), Future()
        self._copying.set_result(None)
        self._copied: dict[str, Entry] = {}
        self._last = time.monotonic()
        for name in kept if self._remote else ():
            if (self.workdir / name).exists():
                copy_file(self.workdir / name, self.folder / name)

    def copy(self, now: bool = False) -> None:
        """Begins to copy what has changed, unless that was done in the last `EVERY_S` seconds or is going on.

        Args:
            now: begin in any case.
        """
        due = time.monotonic() - self._last >= EVERY_S and self._copying.done()
        if self._remote and (due or now):
            self._last = time.monotonic()
            self._copying = self._pool.submit(self._copy)

    def close(self) -> None:
        """Copies the last of it and removes a temporary folder."""
        self.copy(now=True)
        self._pool.shutdown()
        if self._remote:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _copy(self) -> None:
        for name, found in files(self.folder).items():
            if self._copied.get(name) == found:
                continue
            try:
                copy_file(self.folder / name, self.workdir / name)
            except Exception as error:  # whatever the network does: a run is worth more than its log
                print(f"\nmgie: {self.workdir / name} could not be written ({error}); it will be tried again",
                      file=sys.stderr)  # fmt: skip
            else:
                self._copied[name] = found
