"""Small things kept on disk because making them takes seconds: files that are whole, or are not there.

They lie in the user's cache folder, are pickled, as JAX's own cache is, and can be removed at any time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import pickle
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

# What of this package decides the programs of an edit and the shapes of its parameters; a test keeps it whole.
SOURCES = ("programs.py", "edit.py", "types.py", "paths.py", "sharding.py", "torus.py", "executables.py", "kept.py",
           "models", "diffusion", "text")  # fmt: skip
PACKAGES = ("mgie_jax", "jax", "jaxlib", "flax", "qwix", "numpy")
UNUSED_DAYS = 60  # after which a file is removed
_log = logging.getLogger(__name__)


class Files:
    """A folder of things by name; a thing is whatever can be pickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self, name: str) -> Any:
        """None where there is nothing of that name, or nothing of use: damaged, or of another version of a library."""
        path = self.folder / name
        try:
            data = path.read_bytes()
            if hashlib.sha256(data[32:]).digest() != data[:32]:
                raise ValueError("its checksum is another one")
            thing = pickle.loads(data[32:])
        except FileNotFoundError:
            return None
        except Exception as error:  # unpickling raises whatever it likes
            _log.info("%s is of no use: %s", path, error)
            return None
        with suppress(OSError):
            os.utime(path)
        return thing

    def write(self, name: str, thing: Any) -> None:
        """Nothing happens where it cannot be written: it can be made again."""
        data = pickle.dumps(thing)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, new = tempfile.mkstemp(prefix=".new-", dir=self.folder)  # several processes may write one name
            try:
                with open(handle, "wb") as file:
                    file.write(hashlib.sha256(data).digest() + data)
                os.replace(new, self.folder / name)
            finally:
                Path(new).unlink(missing_ok=True)
            self._tidy()
        except OSError as error:
            _log.info("%s cannot be kept: %s", self.folder / name, error)

    def _tidy(self) -> None:
        """Removes what nobody has used for long: of other versions, above all."""
        for path in self.folder.iterdir():
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > UNUSED_DAYS * 24 * 3600:
                    path.unlink()


def digest(*parts: str) -> str:
    """A name for all of the parts, in their order."""
    told = hashlib.sha256()
    for part in parts:
        told.update(f"{len(part)} {part}".encode())
    return told.hexdigest()


@cache
def version() -> str:
    """A name for the code that traces programs: this package's sources, and the versions of the libraries beneath."""
    root = Path(__file__).parent
    paths = [path for name in SOURCES for path in sorted((root / name).glob("*.py")) or [root / name]]
    sources = [f"{path.relative_to(root)}\n{path.read_text(encoding='utf-8')}" for path in paths]
    return digest(*sources, *map(_version, PACKAGES))


def _version(package: str) -> str:
    with suppress(importlib.metadata.PackageNotFoundError):
        return f"{package} {importlib.metadata.version(package)}"
    return f"no {package}"
