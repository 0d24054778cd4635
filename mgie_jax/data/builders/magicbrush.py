"""MagicBrush (Zhang et al. 2023, arXiv 2306.10012): local edits of real photos, made and written down by people.

As published: for training and development Parquet files `data/{split}-NNNNN-of-NNNNN*.parquet` with the columns
img_id, turn_index, source_img, mask_img, instruction, target_img (pictures as {"bytes", "path"}); for the test, and
as others unpack the rest, a folder with `edit_turns.json` ([{"input", "mask", "output", "instruction"}]) and
`images/ID/{ID-input.png, ID-output1.png, ...}`. A later turn starts from what an earlier one made. Masks are not used.
"""

from __future__ import annotations

import collections
import functools
import threading
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from mgie_jax.data.builders.base import PairBuilder
from mgie_jax.data.builders.candidates import Candidate, Pair, Splits, member, read_files, read_rows
from mgie_jax.data.records import DataSetError

SPLITS = ("train", "dev", "test")
TURNS = "edit_turns.json"
_LISTED = ("img_id", "turn_index", "instruction")
_PICTURES = ("source_img", "target_img")


class MagicBrush(PairBuilder):
    """MagicBrush: Parquet files, folders with `edit_turns.json`, or both; every turn is an example."""

    name = "magicbrush"
    DESCRIPTION = "MagicBrush: manually annotated local edits of real photos."
    HOMEPAGE = "https://osu-nlp-group.github.io/MagicBrush"

    def candidates(self) -> Splits:
        """Those of train, dev and test that are there; a folder of turns by another name is the test."""
        name = self.source.resolve().name
        alone = name if name in SPLITS else "test"
        splits, pictures = {}, _Pictures()
        for split in SPLITS:
            tables = sorted({*self.source.glob(f"{split}-*.parquet"), *self.source.glob(f"data/{split}-*.parquet")})
            folders = [self.source / split, *([self.source] if split == alone else [])]
            if folder := next((folder for folder in folders if (folder / TURNS).is_file()), None):
                splits[split] = _turns(folder)
            elif tables:
                splits[split] = [candidate for path in tables for candidate in _rows(path, pictures)]
        if not splits:
            raise DataSetError(f"{self.source}: holds neither {TURNS}, nor SPLIT/{TURNS}, nor data/SPLIT-*.parquet")
        return splits


def _turns(folder: Path) -> list[Candidate]:
    rows = read_rows(folder / TURNS, ("input", "output", "instruction"))
    return [Candidate(Path(str(row["output"])).stem, functools.partial(_of_turn, folder, row)) for row in rows]


def _of_turn(folder: Path, row: dict) -> Pair:
    before, after = (member(folder / "images", f"{str(row[k]).split('-')[0]}/{row[k]}") for k in ("input", "output"))
    return read_files(before, after, row["instruction"])


def _rows(path: Path, pictures: _Pictures) -> list[Candidate]:
    try:
        table = parquet.ParquetFile(path)
        if missing := {*_LISTED, *_PICTURES} - set(table.schema_arrow.names):
            raise DataSetError(f"{path}: lacks the columns {', '.join(sorted(missing))}")
        groups = [table.read_row_group(group, _LISTED).to_pylist() for group in range(table.num_row_groups)]
    except (OSError, pyarrow.ArrowException) as error:
        raise DataSetError(f"{path}: is no whole Parquet file ({error}); download it again") from error
    return [
        Candidate(f"{row['img_id']}-output{row['turn_index']}", functools.partial(pictures.pair, table, group, i, row))
        for group, rows in enumerate(groups)
        for i, row in enumerate(rows)
    ]


class _Pictures:
    """The pictures of the two row groups used last, of all files: a group takes hundreds of megabytes."""

    def __init__(self):
        self._lock, self._groups = threading.Lock(), collections.OrderedDict()

    def pair(self, table: parquet.ParquetFile, group: int, index: int, row: dict[str, Any]) -> Pair:
        with self._lock:
            key = (id(table), group)
            if key not in self._groups:
                self._groups[key] = table.read_row_group(group, _PICTURES)
                if len(self._groups) > 2:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(key)
            pictures = [self._groups[key][name][index].as_py() for name in _PICTURES]
        if not all(isinstance(picture, dict) and isinstance(picture.get("bytes"), bytes) for picture in pictures):
            raise ValueError("its row holds no pictures")
        return Pair(*(picture["bytes"] for picture in pictures), row["instruction"])
