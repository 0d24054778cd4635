"""IPr2Pr, InstructPix2Pix's generated pairs (Brooks et al. 2023, arXiv 2211.09800), in both published forms.

Folders, as InstructPix2Pix publishes them: at any depth a folder with `prompt.json`, whose "edit" is the
instruction, and pairs `ID_0.jpg` (before) and `ID_1.jpg` (after).

Prepared, as MGIE's `process_data.ipynb` writes them: `ipr2pr.tsv` (a pair a line: two JPEGs in base64, a tab between
them), `ipr2pr.pkl` ({"task": [[{"input", "answer", "instruction", "lineidx"}], ...]}, lineidx the byte at which the
line starts) and `ipr2pr_expressive.json` ({input: {"instruction", "expressive"}}). Ids are the notebook's "input".
"""

from __future__ import annotations

import base64
import functools
import mmap
import os
from pathlib import Path
from typing import Any

from mgie_jax.data.builders.base import PairBuilder
from mgie_jax.data.builders.candidates import Candidate, Pair, Splits, read_files, read_json
from mgie_jax.data.builders.safe_pickle import read_pickle
from mgie_jax.data.records import DataSetError

PROMPT = "prompt.json"
_KEYS = {"input": str, "instruction": str, "lineidx": int}


class IPr2Pr(PairBuilder):
    """InstructPix2Pix's pairs: the prepared form where `source` holds `ipr2pr.pkl`, else the folders."""

    name = "ipr2pr"
    DESCRIPTION = "InstructPix2Pix's generated editing pairs, in the form MGIE trains on."
    HOMEPAGE = "https://www.timothybrooks.com/instruct-pix2pix"

    def candidates(self) -> Splits:
        """One split, "train"."""
        return {"train": _prepared(self.source) if (self.source / "ipr2pr.pkl").is_file() else _folders(self.source)}


def _folders(source: Path) -> list[Candidate]:
    found = []
    for folder, folders, files in os.walk(source):
        folders.sort()
        if PROMPT in files:
            root = Path(folder)
            names = [name.removesuffix("_0.jpg") for name in sorted(files) if name.endswith("_0.jpg")]
            # Pairs without their first half are missing something, too.
            names += sorted({n.removesuffix("_1.jpg") for n in files if n.endswith("_1.jpg")} - set(names))
            found += [Candidate(f"{root.name}_{name}_0", functools.partial(_of_folder, root, name)) for name in names]
    if not found:
        raise DataSetError(f"{source}: holds neither ipr2pr.pkl nor folders with {PROMPT} and ID_0.jpg, ID_1.jpg")
    return found


def _of_folder(root: Path, name: str) -> Pair:
    prompt = read_json(root / PROMPT, dict)
    return read_files(root / f"{name}_0.jpg", root / f"{name}_1.jpg", prompt.get("edit", ""))


def _prepared(source: Path) -> list[Candidate]:
    table = read_pickle(source / "ipr2pr.pkl")
    sessions = table.get("task") if isinstance(table, dict) else None
    if not isinstance(sessions, list) or not all(isinstance(session, list) for session in sessions):
        raise DataSetError(f"{source / 'ipr2pr.pkl'}: should hold a dictionary whose 'task' is a list of lists")
    expressive = read_json(source / "ipr2pr_expressive.json", dict)
    lines = _Lines(source / "ipr2pr.tsv")
    found = []
    for row in (row for session in sessions for row in session):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in _KEYS.items()):
            raise DataSetError(f"{source / 'ipr2pr.pkl'}: row {len(found)} should be a dictionary with {list(_KEYS)}")
        read = functools.partial(_of_line, lines, row, expressive.get(row["input"]))
        found.append(Candidate(row["input"], read))
    return found


def _of_line(lines: _Lines, row: dict[str, Any], told: Any) -> Pair:
    fields = lines.at(row["lineidx"]).split(b"\t")
    if len(fields) != 2:
        raise ValueError(f"its line of ipr2pr.tsv has {len(fields)} fields, not 2")
    source, target = (base64.b64decode(field.strip(), validate=True) for field in fields)
    return Pair(source, target, row["instruction"], told.get("expressive", "") if isinstance(told, dict) else "")


class _Lines:
    """A text file read by where its lines start, from any thread."""

    def __init__(self, path: Path):
        try:
            with open(path, "rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise DataSetError(f"{path}: cannot be read ({error}); download it again") from error

    def at(self, start: int) -> bytes:
        if not 0 <= start < len(self._bytes) or (start and self._bytes[start - 1] != 0x0A):
            raise ValueError(f"no line of ipr2pr.tsv starts at byte {start}")
        end = self._bytes.find(b"\n", start)
        if end < 0:
            raise ValueError("its line of ipr2pr.tsv is cut short")
        return self._bytes[start:end]
