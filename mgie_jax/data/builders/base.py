"""What every builder shares: one record schema, pairs checked as they are read, what is skipped counted."""

from __future__ import annotations

import abc
import collections
import concurrent.futures
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2

from mgie_jax.data.builders.candidates import Candidate, Splits, examine
from mgie_jax.data.records import DataSetError
from mgie_jax.paths import to_path

LOG = "skipped.jsonl"
SHARD_BYTES = 128 << 20  # tensorflow-datasets keeps a shard in memory while it writes it
NAMED = 5  # ids an error mentions


class RecordBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Whatever writes the one record schema, in its own order; the same records make the same bytes.

    `ShardBasedBuilder` and not `GeneratorBasedBuilder`: the latter shuffles on disk, which above 1 GB needs
    TensorFlow; Grain shuffles when the data are read.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The first."}
    # Set by each builder.
    DESCRIPTION = HOMEPAGE = ""

    def __init__(self, **kwargs):
        super().__init__(**{"file_format": "array_record"} | kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            "source": tfds.features.Image(doc="before; the file as it came"),
            "target": tfds.features.Image(doc="after; the file as it came"),
            "instruction": tfds.features.Text(),
            "expressive": tfds.features.Text(doc="the expressive instruction, empty where unknown"),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            homepage=self.HOMEPAGE,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _example_writer(self) -> writer.ExampleWriter:
        return _SameBytes(self.info.file_format)


class _SameBytes(writer.ExampleWriter):
    """Protocol buffers put a record's fields in an order that differs from process to process, unless told not to."""

    def write(self, path, examples):
        parsed = ((key, tf_example_pb2.Example.FromString(record)) for key, record in examples)
        return super().write(path, ((key, record.SerializeToString(deterministic=True)) for key, record in parsed))


class PairBuilder(RecordBuilder, skip_registration=True):
    """Editing pairs from a published local layout, in the order of their layout.

    Args:
      source: where the published files lie.
      splits: those to build; none means every one that is there.
      max_skipped: the share of all examples that may be skipped.
      progress: called with the number of examples seen and of all, after each.
      kwargs: of `tfds.core.DatasetBuilder`; `data_dir` is where the data set goes.
    """

    def __init__(self, *, source: str | os.PathLike = ".", splits: Sequence[str] = (), max_skipped: float = 0.05,
                 progress: Callable[[int, int], None] = lambda done, total: None, **kwargs):  # fmt: skip
        self.source, self.wanted = to_path(source), tuple(splits)
        self.max_skipped, self.progress = max_skipped, progress
        super().__init__(**kwargs)

    @abc.abstractmethod
    def candidates(self) -> Splits:
        """The examples of every split in `self.source`. Raises DataSetError where the layout is another."""

    @property
    def log(self) -> Path:
        """Where skipped examples are listed: one {"split", "id", "reason"} a line."""
        return Path(self.data_dir).parent / LOG

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable[[], Iterator[tuple[int, dict]]]]]:
        splits = {split: found for split, found in self.candidates().items() if found}
        if not splits:
            raise DataSetError(f"{self.source}: no examples of {self.name} were found")
        if missing := [split for split in self.wanted if split not in splits]:
            raise DataSetError(f"{self.source}: has no split {missing[0]!r} of {self.name}; it has {', '.join(splits)}")
        splits = {split: found for split, found in splits.items() if split in (self.wanted or splits)}
        self.skipped = Skipped(self.log, sum(map(len, splits.values())), self.max_skipped)
        self._seen = 0
        return {split: self._shards(split, found) for split, found in splits.items()}

    def _shards(self, split: str, candidates: Sequence[Candidate]) -> list[Callable[[], Iterator[tuple[int, dict]]]]:
        ids: set[str] = set()
        parts = _parts(candidates)
        return [functools.partial(self._records, split, part, ids, part is parts[-1]) for part in parts]

    def _records(self, split: str, part: Sequence[Candidate], ids: set[str], last: bool) -> Iterator[tuple[int, dict]]:
        """The good records of a part of a split; `ids` grows by theirs."""
        for number, (candidate, found) in enumerate(_ahead(part)):
            self._seen += 1
            self.progress(self._seen, self.skipped.total)
            if candidate.id in ids:
                found = "an example before it has the same id"
            if isinstance(found, str):
                self.skipped.add(split, candidate.id, found)
                continue
            ids.add(candidate.id)
            yield number, found
        if last and not ids:
            raise DataSetError(f"{self.source}: no example of split {split!r} is any good; see {self.log}")


class Skipped:
    """Examples left out: counted, logged by id as they are met, an error when they are too many.

    The log is a file of JSON lines, made with the first of them.
    """

    def __init__(self, log: Path, total: int, share: float):
        self.total, self.count = total, 0
        self._log, self._share = log, share
        self._first: list[str] = []
        log.unlink(missing_ok=True)

    def add(self, split: str, id: str, reason: str) -> None:
        """Count and log one. Raises DataSetError, naming the first ids, above the share."""
        self.count += 1
        if len(self._first) < NAMED:
            self._first.append(f"{id} ({reason})")
        with open(self._log, "a", encoding="utf-8") as file:
            file.write(json.dumps({"split": split, "id": id, "reason": reason}) + "\n")
        if self.count > self._share * self.total:
            raise DataSetError(
                f"{self.count} of {self.total} examples had to be skipped, more than {self._share:.3g} of them; "
                f"the first: {'; '.join(self._first)}. All are in {self._log}; --max-skipped admits more"
            )


def _parts(candidates: Sequence[Candidate]) -> list[Sequence[Candidate]]:
    """Runs of candidates of about `SHARD_BYTES` each, judged by a few of them."""
    sampled = [examine(candidates[i]) for i in range(0, len(candidates), max(1, len(candidates) // 8))]
    sizes = [len(found["source"]) + len(found["target"]) for found in sampled if isinstance(found, dict)]
    length = max(1, SHARD_BYTES * len(sizes) // sum(sizes)) if sizes else len(candidates)
    return [candidates[start : start + length] for start in range(0, len(candidates), length)]


def _ahead(candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, dict | str]]:
    """Each candidate and what `examine` found, in order; a few are read ahead, for Pillow decodes without the GIL."""
    threads = min(8, os.cpu_count() or 1)
    pending: collections.deque = collections.deque()
    candidates = iter(candidates)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                for candidate in itertools.islice(candidates, 2 * threads - len(pending)):
                    pending.append((candidate, pool.submit(examine, candidate)))
                if not pending:
                    return
                candidate, future = pending.popleft()
                yield candidate, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
