"""Expressive instructions for a whole data set: a new one with the same examples, and what the MLLM says of them.

Examples are taken in windows of consecutive ones; within a window those of like length are asked together. What is in
a batch follows from the data and the batch size alone, never from where a run was stopped or how many processes it
has: so an interrupted run ends with the bytes of one that was not. Each process takes every n-th window and works on a
mesh of its own devices; they share nothing but the folder of `parts`.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Protocol, runtime_checkable

from mgie_jax.data import parts
from mgie_jax.data.ask import Question, Written
from mgie_jax.data.assemble import REPORT, Skipped, assemble, skipped_of, write_log
from mgie_jax.data.builders.base import LOG, NAMED
from mgie_jax.data.parts import Batch
from mgie_jax.data.records import INFO, DataSetError, Example, Examples, contents, load
from mgie_jax.paths import AnyPath, is_remote, is_within, remove
from mgie_jax.weights.atomic import is_there

WINDOW = 8  # batches: enough that few of them are part full, few enough to keep the pictures of two in memory
POLL_S, POLL_BUCKET_S = 0.2, 5.0

Progress = Callable[[str, int, int], None]
"""Called with "ask" or "write", the number of examples done and of all; of "ask", this process's."""


@runtime_checkable
class Ask(Protocol):
    """`ask.Asker`, or a test's."""

    batch_size: int

    def questions(self, examples: Sequence[Example]) -> list[Question | str]: ...

    def __call__(self, questions: Sequence[Question]) -> list[Written]: ...


@dataclass(frozen=True)
class Settings:
    """What the outcome depends on.

    Attributes:
      data: `records.Contents.digest`.
      model, summarizer: `weights.atomic.fingerprint` of their folders; "none" where answers are kept whole.
      splits: those to prepare.
      limit: examples of each split, from its beginning; None for all.
    """

    data: str
    model: str
    summarizer: str
    splits: tuple[str, ...]
    limit: int | None
    batch_size: int
    max_new_tokens: int
    dtype: str


@dataclass(frozen=True)
class Prepared:
    """What there is at the end.

    Attributes:
      path: the new data set's folder.
      splits: split -> number of examples.
      skipped: number of examples left out, listed in `log`; `log` is None where there are none.
      empty: number of examples of which the MLLM said nothing; they have their instruction as expressive one.
      asked: number of examples that this run asked about, on this process.
    """

    path: AnyPath
    splits: dict[str, int]
    skipped: int
    log: AnyPath | None
    empty: int
    asked: int


@dataclass(frozen=True)
class Window:
    """Consecutive examples of a split."""

    split: str
    start: int
    stop: int


def windows(sizes: Mapping[str, int], length: int) -> list[Window]:
    """All examples of splits of these sizes, in order, `length` at a time."""
    return [
        Window(split, start, min(start + length, size))
        for split, size in sizes.items()
        for start in range(0, size, length)
    ]


def share(found: Sequence[Window], process: int, count: int) -> list[Window]:
    """Those of process number `process` of `count`: every window is one process's."""
    return list(found[process::count])


def batches(widths: Sequence[int | None], size: int) -> list[list[int]]:
    """Numbers of the examples asked together: at most `size` of one width each, the narrow first; None is not asked."""
    found = []
    for width in sorted({width for width in widths if width is not None}):
        alike = [i for i, other in enumerate(widths) if other == width]
        found += [alike[start : start + size] for start in range(0, len(alike), size)]
    return found


def chosen(data: AnyPath, splits: Sequence[str], limit: int | None) -> dict[str, int]:
    """Split -> number of examples to prepare.

    Raises:
      DataSetError: `data` is no whole data set, or has no such split.
    """
    there = contents(data).splits
    if missing := [split for split in splits if split not in there]:
        raise DataSetError(f"{data}: has no split {missing[0]!r}; it has {', '.join(there)}")
    wanted = {split: size for split, size in there.items() if split in (splits or there)}
    return {split: size if limit is None else min(size, limit) for split, size in wanted.items()}


def finished(data: AnyPath, out: AnyPath, settings: Settings, overwrite: bool) -> Prepared | None:
    """What a run with these settings has already brought to its end, None where there is something left to do.

    Nothing is written; what such a run was killed over removing is removed.

    Raises:
      DataSetError: something else is at `out` and `overwrite` is False, or it is not for us to replace; or something
        else was begun there.
    """
    folder = parts.folder_of(out)
    if is_within(data, out) or is_within(out, data):
        raise DataSetError(f"{out}: is not apart from {data}; choose another place")
    try:
        report = json.loads((out / REPORT).read_bytes())
    except (OSError, ValueError):
        report = {}
    if not is_there(out, INFO):  # what was killed while it was copied to a bucket
        report = {}
    # With `overwrite` an end counts only where it is this very run's, killed before it had tidied up.
    if report.get("settings") == _plain(settings) and (not overwrite or folder.exists()):
        remove(folder)
        return _report(out, report, 0)
    if is_there(out, INFO) and not overwrite:
        raise DataSetError(f"{out}: exists already; choose another place, or --overwrite to replace it")
    if is_there(out, INFO) and not (out / INFO).is_file():
        raise DataSetError(f"{out}: is no data set, so --overwrite does not replace it; choose another place")
    parts.check(folder, _plain(settings), overwrite)
    return None


def prepare(
    data: AnyPath,
    out: AnyPath,
    settings: Settings,
    ask: Ask,
    *,
    max_skipped: float = 0.05,
    process: int = 0,
    count: int = 1,
    sync: Callable[[str], None] = lambda name: None,
    progress: Progress = lambda stage, done, total: None,
) -> Prepared:
    """Write the data set `out`: `data` with what `ask` says as expressive instructions.

    It appears under its name when it is whole. Killed at any moment, the same call goes on from the last batch; what is
    already there under that name is replaced (`finished` asks first).

    Args:
      data: a data set that `mgie data build` wrote.
      settings: of `ask` and of what to prepare.
      max_skipped: the share of the examples that may be skipped, 0 to 1.
      process, count: which of how many processes this is; each calls this, on one file system.
      sync: waits until every process has called it.
      progress: see `Progress`.

    Raises:
      DataSetError: `data` is damaged, `out` cannot be written, or too many examples are no good.
    """
    folder, poll = parts.folder_of(out), POLL_BUCKET_S if is_remote(out) else POLL_S
    sizes = chosen(data, settings.splits, settings.limit)
    if process == 0:
        parts.begin(folder, _plain(settings))
    sync("begin")
    examples = {split: load(data, split) for split in sizes}
    mine = share(windows(sizes, WINDOW * settings.batch_size), process, count)

    def check(skipped: Sequence[Skipped]) -> None:
        _check_share(skipped, sum(sizes.values()), max_skipped, folder / LOG)

    with parts.part(folder, process) as part:
        asked = _ask_all(mine, examples, ask, parts.read(folder), part.add, check, progress)
        parts.end(folder, process, count)
        while process == 0 and not parts.all_ended(folder, count):
            time.sleep(poll)
        if process == 0:
            done = parts.read(folder).values()
            check(list(skipped_of(done)))
            assemble(out, folder, _plain(settings), sizes, examples, done, partial(progress, "write"))
    # The others leave with process 0, whose end JAX would take for a failure of theirs otherwise.
    while process != 0 and folder.exists():
        time.sleep(poll)
    return _report(out, json.loads((out / REPORT).read_bytes()), asked)


def _ask_all(
    mine: Sequence[Window], examples: Mapping[str, Examples], ask: Ask, done: dict, add: Callable[[Batch], None],
    check: Callable[[Sequence[Skipped]], None], progress: Progress,
) -> int:  # fmt: skip
    """Ask about what is left of a process's windows; returns of how many examples that was."""
    of = {(batch.split, batch.start): batch.of for batch in done.values()}
    own = {(window.split, window.start) for window in mine}
    skipped = list(skipped_of(done.values()))
    seen = sum(len(batch.written) + len(batch.skipped) for key, batch in done.items() if key[:2] in own)
    length = sum(window.stop - window.start for window in mine)
    progress("ask", seen, length)

    def is_open(window: Window) -> bool:
        count = of.get((window.split, window.start))
        return count is None or any((window.split, window.start, n) not in done for n in range(count))

    def look(window: Window) -> tuple[list[Example], list[Question | str]]:
        found = examples[window.split].__getitems__(range(window.start, window.stop))
        return found, ask.questions(found)

    asked = 0
    left = list(filter(is_open, mine))
    for window, (found, questions) in zip(left, _ahead(look, left), strict=True):
        widths = [None if isinstance(question, str) else question.width for question in questions]
        planned = batches(widths, ask.batch_size) or [[]]
        for number, rows in enumerate(planned):
            if (window.split, window.start, number) in done:
                continue
            said = ask([questions[i] for i in rows]) if rows else []
            written = [
                (window.start + i, found[i].id, answer.text, answer.empty) for i, answer in zip(rows, said, strict=True)
            ]
            broken = [
                (window.start + i, found[i].id, why) for i, why in enumerate(questions) if isinstance(why, str)
            ] * (number == 0)
            batch = Batch(window.split, window.start, number, len(planned), tuple(written), tuple(broken))
            add(batch)
            asked += len(written)
            seen += len(written) + len(broken)
            progress("ask", seen, length)
            if broken:
                skipped += skipped_of([batch])
                check(skipped)
    return asked


def _ahead(read: Callable, items: Sequence) -> Iterator:
    """`read` of each item, the next one while the caller works on this one."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(read, items[0]) if items else None
        for item in itertools.chain(items[1:], [None]):
            if following is None:
                return
            ready = following.result()
            following = None if item is None else pool.submit(read, item)
            yield ready


def _check_share(skipped: Sequence[Skipped], total: int, share: float, log: AnyPath) -> None:
    if len(skipped) > share * total:
        named = "; ".join(f"{row.id} ({row.reason})" for row in skipped[:NAMED])
        write_log(log, skipped)
        raise DataSetError(
            f"{len(skipped)} of {total} examples had to be skipped, more than {share:.3g} of them; the first: {named}. "
            f"All are in {log}; --max-skipped admits more"
        )


def _report(out: AnyPath, report: Mapping, asked: int) -> Prepared:
    log = out / LOG if report["skipped"] else None
    return Prepared(out, report["splits"], report["skipped"], log, report["empty"], asked)


def _plain(settings: Settings) -> dict:
    """As JSON brings it back."""
    return asdict(settings) | {"splits": list(settings.splits)}
