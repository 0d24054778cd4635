"""A data set and an MLLM that is none, for tests of `data.prepare`: light enough to import in many processes."""

import contextlib
import io
import os
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from mgie_jax.data.ask import Question, Written
from mgie_jax.data.builders.base import RecordBuilder
from mgie_jax.data.prepare import Settings, finished, prepare
from mgie_jax.data.records import Example, contents


def picture(seed: int, size: tuple[int, int] = (24, 16)) -> bytes:
    """A JPEG file."""
    encoded = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(encoded, "JPEG")
    return encoded.getvalue()


def examples(count: int, split: str = "train") -> list[Example]:
    """Examples whose instructions differ in length."""
    return [
        Example(f"{split}-{i}", picture(i), picture(i + 100), f"add {'many ' * (i * 7 % 5)}frogs {i}", "")
        for i in range(count)
    ]


class _Builder(RecordBuilder, skip_registration=True):
    name = "frogs"

    def __init__(self, splits: Mapping[str, Sequence[Example]], **kwargs):
        self.splits = splits
        super().__init__(**kwargs)

    def _shard_iterators_per_split(self, dl_manager):
        return {
            split: [lambda found=found: ((i, asdict(example)) for i, example in enumerate(found))]
            for split, found in self.splits.items()
        }


def write(path: Path, splits: Mapping[str, Sequence[Example]]) -> Path:
    """A data set of any records, broken pictures too."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        _Builder(splits, data_dir=path).download_and_prepare(download_dir=scratch)
    return path


class Parrot:
    """Says what it is told; nothing where that says "silent", and it cannot see what is "broken"."""

    def __init__(self, batch_size: int, pause: float = 0.0):
        self.batch_size, self.pause = batch_size, pause
        self.asked: list[list[Question]] = []

    def questions(self, examples: Sequence[Example]) -> list[Question | str]:
        """Widths of three kinds."""
        blank = np.zeros((1, 1, 3), np.float32)
        return [
            "cannot be seen" if "broken" in e.instruction else Question([0] * 40 * (len(e.instruction) // 10),
                                                                        blank, e.instruction)
            for e in examples
        ]  # fmt: skip

    def __call__(self, questions: Sequence[Question]) -> list[Written]:
        """Tells, too, with how many others a question came: a batch put together otherwise would show."""
        time.sleep(self.pause)
        self.asked.append(list(questions))
        return [
            Written(question.fallback, True) if "silent" in question.fallback
            else Written(f"{question.fallback}, {i} of {len(questions)}.", False)
            for i, question in enumerate(questions)
        ]  # fmt: skip


def settings(data: Path, **given) -> Settings:
    """Of a Parrot's run."""
    usual = dict(
        data=contents(data).digest, model="parrot", summarizer="none", splits=(), limit=None, batch_size=2,
        max_new_tokens=8, dtype="float32",
    )  # fmt: skip
    return Settings(**usual | given)


def run(data: Path, out: Path, pause: float = 0.0, die: str = "") -> None:
    """A whole run, as a process of its own; dies by SIGKILL at the moment named `die`."""
    chosen = settings(data)
    if finished(data, out, chosen, False):
        return
    if die == "line":  # half a line is written

        def cut(number: int) -> None:
            (part,) = Path(f"{out}.parts").glob("part-*")
            with open(part, "ab") as file:
                file.write(b'{"split": "train", "sta')
            os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = cut

    def progress(stage: str, done: int, total: int) -> None:
        if (stage, done) in {("ask", 6) if die == "ask" else None, ("write", 5) if die == "write" else None}:
            os.kill(os.getpid(), signal.SIGKILL)

    if die == "tidy":
        from mgie_jax.data import assemble

        remove = assemble.remove

        def dying(path):
            if str(path).endswith(".parts") and os.path.exists(path):
                os.kill(os.getpid(), signal.SIGKILL)
            remove(path)

        assemble.remove = dying
    prepare(data, out, chosen, Parrot(2, pause), progress=progress)
