"""An edit's programs made ready before the first photo comes: compiled and kept, none of them run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import jax
import numpy as np
from PIL import Image

from mgie_jax.edit import EditBatch
from mgie_jax.editor import Editor
from mgie_jax.photo import fit_size
from mgie_jax.programs import Dry, Programs, chunks


@dataclass(frozen=True)
class Warmed:
    """One program.

    Attributes:
        name: such as "denoise".
        what: it is compiled for, in words.
        kept: whether it was there already.
        seconds: that it took, one way or the other.
    """

    name: str
    what: str
    kept: bool
    seconds: float


def warm(
    editor: Editor, sizes: Sequence[tuple[int, int]], *, batch: int = 1, steps: int | None = None,
    sampler: str | None = None, guidance_scale: float | None = None, image_guidance_scale: float | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> list[Warmed]:  # fmt: skip
    """Compiles whatever `editor` will run for photos of these sizes, for any instruction, written or supplied.

    Args:
        sizes: (width, height) of photos, in any resolution; only their aspect ratio counts.
        batch: photos at once; rounded up as `Editor.edit_many` does.
        steps, sampler, guidance_scale, image_guidance_scale: the model's own where None. Of the scales only that counts
            which branches of the guidance they leave out.
        progress: called with how many programs are ready, how many there are, and which is next.

    Raises:
        ValueError: an unknown sampler, a number of steps or a size out of range.
    """
    plan = editor.sampler(sampler, steps)
    scales = guidance_scale, image_guidance_scale
    batches = {one.pixels.shape: one for one in (_batch(editor, size, batch, scales) for size in sizes)}
    lengths = {last - first for first, last in chunks(len(plan.table.timestep))}
    written, read = editor.widths(supplied=False), editor.widths(supplied=True)
    telling = _Telling(editor.programs, len(read) + len(written) + len(batches) * (3 + len(lengths)), progress)
    with editor.programs.on_mesh():
        first = next(iter(batches.values()))
        for width in read:
            telling.read(_wide(telling, first, width))
        for width in written:
            _, states = telling.write(_wide(telling, first, width))
        for one in batches.values():
            telling.size = f"{one.pixels.shape[2]}x{one.pixels.shape[1]}"
            telling.draw(plan, telling.placed(one), states)
    return telling.done


def _batch(editor: Editor, size: tuple[int, int], rows: int, scales: tuple[float | None, float | None]) -> EditBatch:
    """As an edit has it, of a grey photo that has the size already to which one of `size` is brought."""
    fitted = fit_size(size, editor.config.sampling.resolution, editor.config.photo_multiple)
    blank = editor.prepare(Image.new("RGB", fitted, "grey"), "a")
    return editor.batch([blank] * rows, *scales)


def _wide(programs: Dry, batch: EditBatch, width: int) -> EditBatch:
    ids = np.zeros((len(batch.ids), width), np.int32)
    return programs.placed(batch.replace(ids=ids, mask=ids > 0))


class _Telling(Dry):
    """Keeps account of what it makes ready."""

    def __init__(self, programs: Programs, total: int, progress: Callable[[int, int, str], None]):
        super().__init__(programs)
        self.done: list[Warmed] = []
        self.size = ""
        self._total, self._progress = total, progress

    def compiled(
        self, jitted: Callable, shapes: tuple, static: dict[str, Any], make: bool = True
    ) -> tuple[jax.stages.Compiled | None, bool]:
        name, what = jitted.__name__.strip("_"), self.size
        if name in ("read", "write"):
            what = f"{shapes[0].ids.shape[1]} tokens"
        if name == "denoise":
            what += f", steps at once: {len(shapes[2].timestep)}"
        self._progress(len(self.done), self._total, name)
        start = perf_counter()
        program, kept = super().compiled(jitted, shapes, static, make)
        self.done.append(Warmed(name, what, kept, perf_counter() - start))
        self._progress(len(self.done), self._total, name)
        return program, kept
