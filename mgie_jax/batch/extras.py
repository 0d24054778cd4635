"""What may go with an edited picture: a comparison with the photo, and the photo made small for the contact sheet."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath

from PIL import Image

from mgie_jax.compare import compare_picture
from mgie_jax.paths import AnyPath, make_folder
from mgie_jax.photo import save_atomic

BEFORE = "before"
THUMBNAIL = 384  # pixels of the longer side, at most


def comparison(output: str) -> str:
    """The name of the comparison that goes with an edited picture."""
    path = PurePosixPath(output)
    return f"{path.stem}-compare{path.suffix}"


def thumbnail(output: str) -> str:
    """The name of the small photo that goes with an edited picture."""
    return f"{BEFORE}/{output}.jpg"


@dataclass(frozen=True)
class Extras:
    """Which of them are wanted."""

    compare: bool = False
    html: bool = False

    def names(self, output: str) -> list[str]:
        """Of the files beside an edited picture."""
        return [comparison(output)] * self.compare + [thumbnail(output)] * self.html

    def make(self, folder: AnyPath) -> None:
        """The folders that they need."""
        if self.html:
            make_folder(folder / BEFORE)

    def missing(self, output: str, there: Collection[str]) -> bool:
        return any(name not in there for name in self.names(output))

    def write(
        self, folder: AnyPath, output: str, before: Image.Image, after: Image.Image, instruction: str, expressive: str
    ) -> None:
        """Those of one picture; `before` is the photo as the model was shown it."""
        if self.compare:
            save_atomic(compare_picture(before, after, instruction, expressive), folder / comparison(output))
        if self.html:
            small = before.copy()
            small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
            save_atomic(small, folder / thumbnail(output))
