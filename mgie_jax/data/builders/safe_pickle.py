"""Pickles of plain data, from people one does not know."""

import pickle
from pathlib import Path
from typing import Any

from mgie_jax.data.records import DataSetError


class _Plain(pickle.Unpickler):
    """Knows no classes and no functions: dictionaries, lists, tuples, sets, text, bytes and numbers need none."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which could run a program")


def read_pickle(path: Path) -> Any:
    """The builtin containers and scalars in a pickle; nothing in it is ever called.

    Raises:
      DataSetError: the file is missing, damaged or holds anything else.
    """
    try:
        with open(path, "rb") as file:
            return _Plain(file).load()
    except FileNotFoundError as error:
        raise DataSetError(f"{path}: there is no such file") from error
    except Exception as error:  # damaged pickles raise whatever they come across
        raise DataSetError(f"{path}: is not read ({error}); it should hold lists, texts and numbers alone") from error
