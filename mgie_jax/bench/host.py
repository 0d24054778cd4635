"""What an edit does on the host: a photo's way to the networks, and the picture's way to a file."""

from pathlib import Path

from mgie_jax.bench.case import Case
from mgie_jax.bench.inputs import INSTRUCTION, photo
from mgie_jax.bench.stages import Work
from mgie_jax.photo import save_atomic

PHOTO = (1600, 1200)  # pixels of the photo that is opened; a phone's have six times as many
HOST = ("open", "save")


def stage(case: Case, name: str, folder: Path) -> Work:
    """One of the stages `HOST`; files are written in `folder`."""
    if name == "open":
        path = folder / "photo.jpg"
        save_atomic(photo(PHOTO), path)
        return Work("open", lambda: [case.editor.prepare(path, INSTRUCTION) for _ in range(case.rows)])
    picture, path = photo(case.size), folder / "edited.png"
    return Work("save", lambda: [save_atomic(picture, path) for _ in range(case.rows)])
