"""The first edit of a process: its programs are loaded while the weights are read.

What decides a program is known only once the model is in memory: how its parameters are laid out, ids of its tokenizer.
The last process that loaded the model has left that in the user's cache folder (`remember`), so that the next one can
look for the programs at once (`begin`). Where it has changed since, it is as if nothing had been begun.
"""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import PyTree

from mgie_jax.compilation import programs_dir
from mgie_jax.diffusion.sample import SAMPLERS, scales
from mgie_jax.edit import EditBatch, Special
from mgie_jax.executables import Store, described
from mgie_jax.kept import Files, digest, version
from mgie_jax.models.mgie import MGIE
from mgie_jax.models.presets import MGIEConfig
from mgie_jax.photo import fit_size
from mgie_jax.programs import Programs


@dataclass(frozen=True)
class Known:
    """What an editor of one device knows when its model is in memory.

    Attributes:
        shapes: of the parameters, `described`.
        width: that prompts are padded to, but for very long ones.
    """

    model: MGIE
    shapes: PyTree
    special: Special
    width: int


def remember(told: str, known: Known) -> None:
    """Keeps it, unless it is there; `told` says all that decides it."""
    files, name = Files(programs_dir()), _name(told)
    if files.read(name) != known:
        files.write(name, known)


def begin(told: str, store: Store, config: MGIEConfig, size: tuple[int, int]) -> Programs | None:
    """Programs of a model that is still to be read, which have begun to load those of its usual edit of one photo.

    Args:
        told: as it was remembered.
        size: (width, height) of the photo.

    Returns:
        What `Programs` takes as `begun`; None where nothing was remembered.
    """
    known = Files(programs_dir()).read(_name(told))
    if not isinstance(known, Known):
        return None
    seen, usual = config.mllm.vision.image_size, config.sampling
    width, height = fit_size(size, usual.resolution, config.photo_multiple)
    programs = Programs(known.model, known.shapes, known.special, store=store)
    batch = EditBatch(
        ids=jax.ShapeDtypeStruct((1, known.width), np.int32),
        mask=jax.ShapeDtypeStruct((1, known.width), np.bool_),
        clip_pixels=jax.ShapeDtypeStruct((1, seen, seen, 3), np.float32),
        pixels=jax.ShapeDtypeStruct((1, height, width, 3), np.float32),
        scales=jax.tree.map(described, scales(1, usual.guidance_scale, usual.image_guidance_scale)),
    )
    programs.look_ahead(SAMPLERS[usual.sampler](config.schedule, usual.steps), batch, text_too=True)
    return programs


def _name(told: str) -> str:
    return f"known-{digest(version(), jax.default_backend(), told)[:40]}"
