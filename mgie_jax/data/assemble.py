"""The new data set of a preparation, from the old one and all finished batches, whole or not at all."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mgie_jax.data.builders.base import LOG, SHARD_BYTES, RecordBuilder
from mgie_jax.data.parts import Batch
from mgie_jax.data.records import INFO, DataSetError, Examples
from mgie_jax.paths import AnyPath, is_remote, remove
from mgie_jax.weights.atomic import publish, write_text

REPORT = "prepare.json"


class Skipped(NamedTuple):
    """An example left out; `index` is its number in its split."""

    split: str
    index: int
    id: str
    reason: str


def skipped_of(batches: Iterable[Batch]) -> Iterator[Skipped]:
    """All that batches say was left out."""
    return (Skipped(batch.split, *row) for batch in batches for row in batch.skipped)


def write_log(path: AnyPath, skipped: Iterable[Skipped]) -> None:
    """List examples left out: one {"split", "id", "reason"} a line, in their order."""
    lines = [json.dumps({"split": row.split, "id": row.id, "reason": row.reason}) + "\n" for row in sorted(skipped)]
    write_text(path, "".join(lines))


def assemble(
    out: AnyPath,
    folder: AnyPath,
    settings: Mapping[str, Any],
    sizes: Mapping[str, int],
    examples: Mapping[str, Examples],
    done: Collection[Batch],
    progress: Callable[[int, int], None],
) -> None:
    """Make the new data set from the old one and all batches, and remove the parts.

    Args:
      out: where it goes; what is there is replaced. What goes to a bucket is written to the temporary folder first,
        which must have room for it.
      folder: of the parts.
      settings: what the data set came of, to be kept with it.
      sizes: split -> number of examples, those skipped among them.
      examples: split -> the old ones.
      progress: called with the number of examples written and of all.

    Raises:
      DataSetError: batches are missing, nothing of a split is left, or the old data set is another one by now.
    """
    texts: dict[str, dict[int, tuple[str, str]]] = {split: {} for split in sizes}
    skipped = list(skipped_of(done))
    empty = 0
    for batch in done:
        texts[batch.split] |= {index: (id, text) for index, id, text, _ in batch.written}
        empty += sum(said_nothing for *_, said_nothing in batch.written)
    missing = sum(sizes.values()) - len(skipped) - sum(map(len, texts.values()))
    if missing:
        raise DataSetError(f"{folder}: lacks {missing} examples; remove it and prepare anew")
    if bare := next((split for split in texts if not texts[split]), None):
        raise DataSetError(f"no example of split {bare!r} is any good; the first of all: {skipped[0].reason}")
    counts = {split: len(found) for split, found in texts.items()}
    report = {"settings": settings, "splits": counts, "skipped": len(skipped), "empty": empty}

    def write(where: Path) -> Path:
        # What tensorflow-datasets prints is of no use to the caller.
        with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
            name = next(iter(examples.values())).name
            builder = PreparedBuilder(name, examples, texts, progress, data_dir=where)
            builder.download_and_prepare(download_dir=scratch)
        whole = Path(builder.data_dir)
        if skipped:
            write_log(whole / LOG, skipped)
        write_text(whole / REPORT, json.dumps(report, indent=2) + "\n")
        return whole

    if is_remote(out):
        with tempfile.TemporaryDirectory() as here:
            publish(write(Path(here)), out, INFO, overwrite=True)
    else:
        new, old = folder / "new", folder / "old"
        for left in (new, old):
            remove(left)
        whole = write(new)
        if out.exists():
            out.rename(old)
        whole.rename(out)
    remove(folder)


class PreparedBuilder(RecordBuilder, skip_registration=True):
    """The records of other data sets with new expressive instructions.

    Args:
      name: of the data set.
      texts: split -> {number of the example: (its id, expressive instruction)}; the others are left out.
      progress: called with the number of examples written and of all.
    """

    name = "prepared"
    DESCRIPTION = "Editing pairs with expressive instructions that an MLLM wrote (mgie prepare)."

    def __init__(self, name: str, examples: Mapping[str, Examples], texts: Mapping[str, Mapping[int, tuple[str, str]]],
                 progress: Callable[[int, int], None], **kwargs):  # fmt: skip
        self.name = name
        self._examples, self._texts, self._progress, self._seen = examples, texts, progress, 0
        super().__init__(**kwargs)

    def _shard_iterators_per_split(self, dl_manager):
        return {split: [partial(self._records, split, run) for run in self._runs(split)] for split in self._texts}

    def _runs(self, split: str) -> list[list[int]]:
        """The examples of each shard, judged by a few of them."""
        kept = sorted(self._texts[split])
        sampled = [self._examples[split][i] for i in kept[:: max(1, len(kept) // 8)]]
        size = sum(len(example.source) + len(example.target) for example in sampled) / len(sampled)
        length = max(1, int(SHARD_BYTES / size))
        return [kept[start : start + length] for start in range(0, len(kept), length)]

    def _records(self, split: str, run: Sequence[int]) -> Iterator[tuple[int, dict]]:
        total = sum(map(len, self._texts.values()))
        for number, index in enumerate(run):
            example, (id, text) = self._examples[split][index], self._texts[split][index]
            if example.id != id:
                raise DataSetError(f"example {index} of split {split!r} is {example.id} and was {id}; prepare it anew")
            self._seen += 1
            self._progress(self._seen, total)
            yield number, asdict(example) | {"expressive": text}
