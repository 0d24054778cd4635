"""Data sets of editing pairs on disk: one record schema, read by number.

A data set is a folder that tensorflow-datasets wrote (`mgie data build`): ArrayRecord files whose records hold
`FIELDS`, pictures as the encoded JPEG or PNG bytes they came as. Reading needs no TensorFlow.

In a bucket, records are read where they are, a request each: it is `config.workers` that hides how long those take.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, SupportsIndex

from mgie_jax.paths import REMEDY, AnyPath, files, is_remote, to_path

FIELDS = ("id", "source", "target", "instruction", "expressive")
INFO = "dataset_info.json"
READS_BUCKETS = (0, 8, 3)  # the first array_record that can
INCOMPLETE = "incomplete."  # what tensorflow-datasets calls the folder of a build that has not ended


class DataSetError(ValueError):
    """A data set or what it is built from is missing or damaged; one line that says what to do about it."""


@dataclass(frozen=True, slots=True)
class Example:
    """One editing pair.

    Attributes:
      id: unique within its split.
      source, target: the pictures before and after as JPEG or PNG files; `photo.decode_photo` reads them.
      instruction: what a person asked for.
      expressive: the expressive instruction; "" where there is none yet.
    """

    id: str
    source: bytes
    target: bytes
    instruction: str
    expressive: str


class Examples(Sequence):
    """A split of a data set as a random-access sequence of `Example`, as Grain's sources are.

    It can be pickled, and so sent to worker processes; files are opened when they are first read. Its `repr`
    names the data and not their place: Grain compares it when a run is resumed, perhaps on another machine.
    """

    def __init__(self, name: str, split: str, records: Sequence[Any]):
        self.name, self.split, self._records = name, split, records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> Example:
        """Example number `index`. Raises IndexError outside the split, DataSetError where its file is damaged."""
        # Reading several takes threads, which cost more than reading one.
        return self._read([index], lambda wanted: [self._records[wanted[0]]])[0]

    def __getitems__(self, indices: Iterable[SupportsIndex]) -> list[Example]:
        """Several examples, read together."""
        return self._read(indices, self._records.__getitems__)

    def _read(self, indices: Iterable[SupportsIndex], read: Callable[[list[int]], Iterable[Any]]) -> list[Example]:
        wanted = [self._checked(index) for index in indices]
        try:
            return [_example(record) for record in read(wanted)]
        except Exception as error:  # ArrayRecord's checksums, protocol buffers
            named = ", ".join(map(str, wanted))
            raise DataSetError(f"{self!r}: example {named} of it cannot be read ({error}); build it again") from error

    def __repr__(self) -> str:
        return f"Examples({self.name}, split={self.split}, {len(self)} examples)"

    def _checked(self, index: SupportsIndex) -> int:
        index = index.__index__()
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self!r} has no example {index}")
        return index % len(self)


def load(path: str | os.PathLike, split: str | None = None) -> Examples:
    """Open a data set that `mgie data build` wrote.

    Args:
      path: the folder given to `mgie data build` as OUT, or the data set's own folder in it.
      split: by default "train", or the only split there is.

    Raises:
      DataSetError: there is no such folder, it holds no whole data set or several, the records are others,
        files of it are missing, or it has no such split.
    """
    import tensorflow_datasets as tfds

    folder, builder = _open(to_path(path))
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    names = {name: [file.name for file in info.filepaths] for name, info in builder.info.splits.items()}
    bytes_of = {name: info.num_bytes for name, info in builder.info.splits.items()}
    if split is None:
        split = "train" if "train" in sizes or len(sizes) != 1 else next(iter(sizes))
    if split not in sizes:
        raise DataSetError(f"{folder}: has no split {split!r}; it has {', '.join(sizes)}")
    there = files(folder)
    if missing := next((name for name in names[split] if name not in there), None):
        raise DataSetError(f"{folder / missing}: this part of the data set is missing; copy it again or build it again")
    if (found := sum(there[name].size for name in names[split])) != bytes_of[split]:
        raise DataSetError(
            f"{folder}: split {split!r} has {found} bytes where {bytes_of[split]} were written; copy or build it again"
        )
    if is_remote(folder) and tuple(map(int, version("array_record").split(".")[:3])) < READS_BUCKETS:
        raise DataSetError(f"{folder}: the array_record installed cannot read gs://: {REMEDY}")
    skip = tfds.decode.SkipDecoding()
    try:
        records = builder.as_data_source(split, decoders={"source": skip, "target": skip})
    except Exception as error:
        raise DataSetError(f"{folder}: its files cannot be read ({error}); build it again") from error
    return Examples(builder.info.name, split, records)


@dataclass(frozen=True)
class Contents:
    """What a data set says of itself.

    Attributes:
      name: of the data set, such as "ipr2pr".
      splits: split -> number of examples.
      digest: of the files that describe it: data sets that differ in it are different ones.
    """

    name: str
    splits: dict[str, int]
    digest: str


def contents(path: str | os.PathLike) -> Contents:
    """Read a data set's description alone. Raises DataSetError as `load` does, but for the records' files."""
    folder, builder = _open(to_path(path))
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    return Contents(builder.info.name, sizes, hashlib.sha256((folder / INFO).read_bytes()).hexdigest())


def _open(path: AnyPath) -> tuple[AnyPath, Any]:
    """A data set's own folder and its builder, whose records are of the one schema."""
    import tensorflow_datasets as tfds

    folder = _folder_of(path)
    try:
        builder = tfds.builder_from_directory(folder)
        fields = set(builder.info.features)
        [(info.num_examples, info.num_bytes, info.filepaths) for info in builder.info.splits.values()]
    except Exception as error:  # whatever JSON and protocol buffers say to a damaged file
        raise DataSetError(f"{folder}: its {INFO} or features.json cannot be read ({error}); build it again") from error
    if fields != set(FIELDS):
        raise DataSetError(f"{folder}: its records hold {', '.join(sorted(fields))}, not {', '.join(FIELDS)}")
    return folder, builder


def _folder_of(path: AnyPath) -> AnyPath:
    """The folder that holds `INFO`: `path` itself, or the only one up to two levels below (name/version)."""
    if not path.is_dir():
        raise DataSetError(f"{path}: there is no such folder")
    found = [file.parent for pattern in (INFO, f"*/{INFO}", f"*/*/{INFO}") for file in sorted(path.glob(pattern))]
    whole = [folder for folder in found if not folder.name.startswith(INCOMPLETE)]
    if len(whole) == 1:
        return whole[0]
    if whole:
        raise DataSetError(f"{path}: holds several data sets, name one: {', '.join(map(str, whole))}")
    if path.name.startswith(INCOMPLETE) or any(path.glob(f"{INCOMPLETE}*")) or any(path.glob(f"*/{INCOMPLETE}*")):
        raise DataSetError(f"{path}: its build did not end; run `mgie data build` again")
    raise DataSetError(
        f"{path}: is no data set (it holds no {INFO}); `mgie data build` makes one, "
        "`mgie data photos` a folder of photos"
    )


def _example(record: dict[str, bytes]) -> Example:
    texts = {name: record[name].decode() for name in ("id", "instruction", "expressive")}
    return Example(source=record["source"], target=record["target"], **texts)
