"""A file in a bucket, read by parts as a local one is.

A request takes tens of milliseconds whatever it brings, so that much is asked for at once: `SPAN` bytes, by `PARTS`
requests side by side. A tensor of which a host needs some columns is therefore read by whole rows, and no more of it
kept than those columns.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mgie_jax.paths import AnyPath, entry, gcs
from mgie_jax.weights.tensor import ModelDirError

SPAN = 2**26
PARTS = 8


class BucketFile:
    """What was at `path` when this was made; once it is replaced, reading it is an error and never a mixture.

    Raises:
      FileNotFoundError: there is nothing.
    """

    span = SPAN

    def __init__(self, path: AnyPath):
        self.path, self._entry = path, entry(path)

    def size(self) -> int:
        return self._entry.size

    def read(self, start: int, into: np.ndarray) -> None:
        """Fills the contiguous array `into` with the bytes from `start` on."""
        todo = memoryview(into.reshape(-1).view(np.uint8))
        part = max(2**20, -(-len(todo) // PARTS))
        starts = range(0, len(todo), part)

        def fetch(first: int) -> None:
            wanted = todo[first : first + part]
            found = self._fetch(start + first, start + first + len(wanted))
            if len(found) != len(wanted):
                raise ModelDirError(f"{self.path} was cut short while it was read; fetch it again")
            wanted[:] = found

        if len(starts) < 2:
            list(map(fetch, starts))
            return
        with ThreadPoolExecutor(len(starts)) as pool:
            list(pool.map(fetch, starts))

    def _fetch(self, start: int, stop: int) -> bytes:
        try:
            return gcs().cat_file(str(self.path), start=start, end=stop, generation=str(self._entry.version))
        except FileNotFoundError as error:
            raise ModelDirError(f"{self.path} was removed or replaced while it was read; try again") from error
        except OSError as error:
            raise ModelDirError(f"{self.path} cannot be read: {error}") from error


def sha256(path: AnyPath) -> str:
    """A file's checksum, in hexadecimal; `SPAN` bytes of it are in memory."""
    file, digest = BucketFile(path), hashlib.sha256()
    for start in range(0, file.size(), SPAN):
        span = np.empty(min(SPAN, file.size() - start), np.uint8)
        file.read(start, span)
        digest.update(span)
    return digest.hexdigest()
