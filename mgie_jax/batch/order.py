"""In which order jobs are done, so that few programs compile and few rows of a batch are empty.

A program is compiled for a picture's size, for how many rows a batch has, and (the MLLM's alone) for how many tokens a
prompt is padded to. So jobs of one size, and of one kind (their expressive instructions are all to be written, or all
given), are done one after the other in batches of one number of rows: what comes after the MLLM compiles once for each
size. Within them the short prompts come first, and the MLLM compiles once for each width there is; where one width ends
and the next begins, a batch has the wider.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mgie_jax.batch.jobs import Job

Size = tuple[int, int]


@dataclass(frozen=True)
class Group:
    """Jobs whose pictures fit one size, in the order in which they are done.

    Attributes:
      size: width and height of the fitted photos; None where the photos' headers do not tell.
      rows: of the group's batches.
    """

    size: Size | None
    jobs: tuple[Job, ...]
    rows: int


def groups(
    jobs: Iterable[Job], size: Callable[[Job], Size | None], width: Callable[[Job], int], batch_size: int
) -> list[Group]:
    """Every job once; the groups in the order of their first jobs.

    Args:
      size: of a job's fitted photo.
      width: tokens to which a job's prompt is padded where it is alone.
      batch_size: most rows of a batch. A group of fewer jobs has the next power of two.
    """
    found: dict[tuple, list[Job]] = {}
    for job in jobs:
        found.setdefault((size(job), job.expressive is not None), []).append(job)
    return [
        Group(key[0], tuple(sorted(alike, key=width)), min(batch_size, 1 << (len(alike) - 1).bit_length()))
        for key, alike in found.items()
    ]


def share(jobs: list[Job], process: int, count: int) -> list[Job]:
    """Those of process number `process` of `count`: neighbours, since they are likely of one size."""
    return jobs[len(jobs) * process // count : len(jobs) * (process + 1) // count]
