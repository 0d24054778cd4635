"""A model that is none, for tests of `mgie_jax.batch`: it paints what it is told on the photo."""

import os
import signal
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mgie_jax.batch.extras import Extras
from mgie_jax.batch.jobs import folder_jobs
from mgie_jax.batch.run import Outcome, edit_all
from mgie_jax.batch.settings import Settings
from mgie_jax.editor import EditResult, Prepared
from mgie_jax.models import presets
from mgie_jax.photo import fit, open_photo

CONFIG = presets.test()


def settings(**given) -> Settings:
    """Of a Painter's run."""
    usual = dict(model="painter", steps=3, sampler="ddim", guidance_scale=7.5, image_guidance_scale=1.5)
    return Settings(**usual | {"dtype": "float32"} | given)


class Painter:
    """Says and paints what follows from the photo, the words and the seed; photos it had are in `batches`."""

    def __init__(self, pause: float = 0.0):
        self.pause = pause
        self.batches: list[tuple[list[Prepared], int | None]] = []

    def prepare(self, photo: object, instruction: str, *, seed: int, expressive: str | None) -> Prepared:
        if "too long" in instruction:
            raise ValueError("the instruction is too long")
        before, note = fit(open_photo(photo), CONFIG.sampling.resolution, CONFIG.photo_multiple)
        blank = np.zeros((1, 1, 3), np.float32)
        return Prepared(before, note, seed, expressive, list(instruction.encode()), blank, blank)

    def width(self, instruction: str, expressive: str | None) -> int:
        """Of two kinds."""
        return 64 if len(instruction) < 20 else 128

    def edit_prepared(self, rows: Sequence[Prepared], *, padded_to: int | None, **sampling) -> list[EditResult]:
        self.batches.append((list(rows), padded_to))
        assert sampling == settings().sampling and len({row.before.size for row in rows}) == 1
        time.sleep(self.pause)
        seconds = dict.fromkeys(("read", "write", "guide", "decode"), 0.0) | {"denoise": self.pause}
        found = []
        for row in rows:
            words = bytes(row.ids).decode()
            colour = zlib.crc32(f"{words} {row.seed}".encode()) & 0xFFFFFF
            painted = Image.blend(row.before, Image.new("RGB", row.before.size, f"#{colour:06x}"), 0.5)
            states = np.zeros((8, 1), np.float32)
            said = row.expressive or f"It becomes {words}."
            found.append(EditResult(painted, row.before, said, row.seed, seconds, row.note, states))
        return found


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 40)) -> Path:
    """A photo of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def do(jobs, out: Path, painter: Painter, **given) -> Outcome:
    """A run of some jobs."""
    usual = dict(batch_size=4, extras=Extras(html=True))
    return edit_all(jobs, out, settings(), CONFIG, lambda: painter, **usual | given)


def run(photos: Path, out: Path, pause: float = 0.0, die: str = "") -> None:
    """A whole run over a folder, as a process of its own; dies by SIGKILL at the moment named `die`."""

    def dead(*_) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if die == "line":  # half a line is written

        def cut(number: int) -> None:
            with open(out / "results.jsonl", "ab") as file:
                file.write(b'{"output": "p0')
            dead()

        os.fsync = cut
    if die == "picture":  # it has no name yet
        os.replace = dead
    if die == "gather":
        from mgie_jax.batch import run as whole

        whole.write_page = dead
    do(folder_jobs(photos, "brighter", 3, None), out, Painter(pause))
