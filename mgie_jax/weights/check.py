"""What is in a model directory, and whether it would load, tensor by tensor and byte by byte."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mgie_jax.models.presets import MGIEConfig
from mgie_jax.paths import AnyPath, files, to_path
from mgie_jax.weights.atomic import SUMS, read_sums, sha256
from mgie_jax.weights.files import TABLES, expected, load_tokenizer, part_tensors
from mgie_jax.weights.model_config import load_config
from mgie_jax.weights.rules import KeyMismatch, match
from mgie_jax.weights.safetensors_files import blocks
from mgie_jax.weights.tensor import ModelDirError, is_floating

MATCHES, DIFFERS, UNRECORDED = "matches", "differs", "not recorded"
_READ = {".json", ".safetensors", ".model"}  # what loading may read; a card or a licence may change


@dataclass(frozen=True)
class FileReport:
    """A file: its name within the model directory, size in bytes, sha256, and how that compares to SHA256SUMS."""

    name: str
    nbytes: int
    sha256: str
    recorded: str


@dataclass(frozen=True)
class PartReport:
    """One network's folder.

    Attributes:
      name: the folder.
      tensors: how many tensors it holds.
      parameters: how many numbers.
      nbytes: what they take in the files.
      dtypes: dtype -> parameters of it.
      shapes: (key with "*" for numbers, shape, how many tensors of these), in the files' order.
      nonfinite: key -> how many of its numbers are NaN or infinite.
      problems: what keeps it from loading, each with what to do.
    """

    name: str
    tensors: int = 0
    parameters: int = 0
    nbytes: int = 0
    dtypes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    shapes: tuple[tuple[str, tuple[int, ...], int], ...] = ()
    nonfinite: Mapping[str, int] = dataclasses.field(default_factory=dict)
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """A model directory.

    Attributes:
      path: the directory.
      parts: one for each network.
      files: every file.
      vocabulary: tokens of the tokenizer; None where it does not load.
      special_tokens: content -> id.
      problems: what is wrong, the parts' included, each with what to do.
      loads: whether `load_model_dir` and `load_tokenizer` take it.
      verified: whether every file is the one that was written, by SHA256SUMS; None where there are no checksums.
    """

    path: str
    parts: tuple[PartReport, ...]
    files: tuple[FileReport, ...]
    vocabulary: int | None
    special_tokens: Mapping[str, int]
    problems: tuple[str, ...]
    loads: bool
    verified: bool | None

    @property
    def good(self) -> bool:
        """It loads, all its numbers are finite, and no file differs from its checksum. (Without checksums damage
        to the numbers themselves cannot be seen.)"""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """The same as an object for `json.dumps`."""
        return dataclasses.asdict(self) | {
            "good": self.good,
            "parameters": sum(part.parameters for part in self.parts),
        }

    def __str__(self) -> str:
        lines = [self.path]
        for part in self.parts:
            kinds = ", ".join(part.dtypes) or "nothing"
            lines.append(
                f"  {part.name:13} {part.parameters / 1e6:10,.2f} M parameters {part.tensors:6} tensors "
                f"{part.nbytes / 1e6:10,.1f} MB  {kinds}"
            )
        total = sum(part.parameters for part in self.parts)
        lines.append(f"  {'all':13} {total / 1e6:10,.2f} M parameters")
        if self.vocabulary is not None:
            special = ", ".join(f"{token} {i}" for token, i in self.special_tokens.items())
            lines.append(f"  vocabulary    {self.vocabulary} tokens; {special}")
        lines += [f"  {file.sha256}  {file.name} ({file.nbytes} bytes, {file.recorded})" for file in self.files]
        checksums = {True: "all files match", False: "files do not match", None: "not verified: there are none"}
        lines.append(f"  checksums     {checksums[self.verified]}")
        lines += [f"  PROBLEM: {problem}" for problem in self.problems]
        lines.append(f"  {'loads' if self.loads else 'does not load'}; {'good' if self.good else 'NOT good'}")
        return "\n".join(lines)


def check(path: str | AnyPath, progress: Callable[[int], None] | None = None) -> Report:
    """Reads a model directory through, file by file and tensor by tensor, with one block in memory.

    Args:
      path: the directory.
      progress: called with bytes as they have been read; every file is read once for its checksum, and every
        tensor once for its numbers.

    Returns:
      The report. What is wrong with the model is in it, and never raised.

    Raises:
      ModelDirError: `path` is no folder.
    """
    path = to_path(path)
    if not path.is_dir():
        raise ModelDirError(f"{path} is not a folder; give the folder of a model directory")
    problems: list[str] = []
    config, templates = None, {}
    try:
        config = load_config(path)
        templates = expected(config)
    except ModelDirError as error:
        problems.append(str(error))
    parts = tuple(_part(path, part, templates.get(part), progress) for part in TABLES)
    problems += [problem for part in parts for problem in part.problems]
    vocabulary, special = None, {}
    if config is not None:
        try:
            vocabulary, special = _vocabulary(path, config)
        except ModelDirError as error:
            problems.append(str(error))
    loads = not problems
    for part in parts:
        for key, count in part.nonfinite.items():
            problems.append(f"{path / part.name}: {count} numbers of {key} are NaN or infinite; use another checkpoint")
    files, faults, recorded = _files(path, progress)
    return Report(
        path=str(path),
        parts=parts,
        files=files,
        vocabulary=vocabulary,
        special_tokens=special,
        problems=(*problems, *faults),
        loads=loads,
        verified=not faults if recorded else None,
    )


def _part(path: AnyPath, name: str, template: Mapping | None, progress: Callable[[int], None] | None) -> PartReport:
    try:
        tensors = part_tensors(path, name)
    except ModelDirError as error:
        return PartReport(name, problems=(str(error),))
    problems: list[str] = []
    if template is not None:
        try:
            match(template, tensors, name, TABLES[name])
        except KeyMismatch as error:
            problems += _advice(path / name, error)
    dtypes: Counter[str] = Counter()
    shapes: Counter[tuple[str, tuple[int, ...]]] = Counter()
    nonfinite: dict[str, int] = {}
    own = {key: tensor for key, tensor in tensors.items() if tensor.path.parent == path / name}  # no borrowed `emb`
    for key, tensor in own.items():
        dtypes[tensor.dtype.name] += tensor.nbytes // tensor.dtype.itemsize
        shapes[re.sub(r"(?<=\.)\d+(?=\.)", "*", key), tensor.shape] += 1
        try:
            bad = 0
            for block in blocks(tensor):
                bad += int((~np.isfinite(block)).sum()) if is_floating(block.dtype) else 0
        except ModelDirError as error:
            problems.append(str(error))
        if bad:
            nonfinite[key] = bad
        if progress:
            progress(tensor.nbytes)
    return PartReport(
        name=name,
        tensors=len(own),
        parameters=sum(dtypes.values()),
        nbytes=sum(tensor.nbytes for tensor in own.values()),
        dtypes=dict(dtypes),
        shapes=tuple((key, shape, count) for (key, shape), count in shapes.items()),
        nonfinite=nonfinite,
        problems=tuple(problems),
    )


def _advice(folder: AnyPath, error: KeyMismatch) -> list[str]:
    """A line for each key of a mismatch, with what to do about it."""
    config = f"{folder.name}/config.json"
    return [
        *(f"{folder}: {key} is missing; convert or download this part again, or correct {config}"
          for key in error.missing),
        *(f"{folder}: {key} belongs to no tensor of this network; correct {config}, or convert this part again "
          "from a checkpoint of this network" for key in error.unexpected),
        *(f"{folder}: {key} has the shape {got}, {config} asks for {want}; correct the one or replace the other"
          for key, (want, got) in error.misshaped.items()),
        *(f"{folder}: {key} is {dtype}, expected floats; use a checkpoint that is not quantised"
          for key, dtype in error.mistyped.items()),
    ]  # fmt: skip


def _vocabulary(path: AnyPath, config: MGIEConfig) -> tuple[int, dict[str, int]]:
    tokenizer = load_tokenizer(path, config)
    special = {token.content: i for i, token in tokenizer.tokenizer.added_tokens_decoder.items()}
    return tokenizer.vocab_size, dict(sorted(special.items(), key=lambda item: item[1]))


def _files(path: AnyPath, progress: Callable[[int], None] | None) -> tuple[tuple[FileReport, ...], list[str], bool]:
    """Every file with its checksum, what is wrong with them, and whether checksums were recorded."""
    faults: list[str] = []
    try:
        recorded = read_sums(path)
    except ModelDirError as error:
        recorded, faults = {}, [str(error)]
    reports = []
    for name, entry in files(path).items():
        if name == SUMS:
            continue
        try:
            digest = sha256(path / name)
        except OSError as error:
            faults.append(f"{path / name} cannot be read: {error.strerror or error}")
            continue
        state = UNRECORDED
        if recorded is not None and name in recorded:
            state = MATCHES if recorded[name] == digest else DIFFERS
        elif recorded and (path / name).suffix in _READ:
            faults.append(f"{path / name} is not in {SUMS}; remove it, or write the model anew")
        if state == DIFFERS:
            faults.append(
                f"{path / name} differs from {SUMS}: damaged, or changed since; fetch it again, or if you changed it, "
                f"write its line anew with sha256sum"
            )
        reports.append(FileReport(name, entry.size, digest, state))
        if progress:
            progress(entry.size)
    for name in recorded or {}:
        if not (path / name).is_file():
            faults.append(f"{path / name} is in {SUMS} and missing; copy or download it again")
    return tuple(reports), faults, recorded is not None
