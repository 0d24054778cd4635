"""How well a model does what the generator's instructions ask, on photos and in words it has never seen.

For every kind of global edit: the distance to the true result beside the distance of the photo left alone, whether
the photo moved in the right direction, and whether the expressive instruction names the right edit.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mgie_jax.data.expressive import named_edit
from mgie_jax.data.generate import EditExample, EditPairs
from mgie_jax.data.ops import GLOBAL_OPS
from mgie_jax.data.photo_stats import measure
from mgie_jax.data.repairs import REPAIRS
from mgie_jax.editor import Editor, EditResult
from mgie_jax.eval.metrics import l1, psnr, unit
from mgie_jax.models.mgie import MGIE
from mgie_jax.sharding import on_mesh_of

BATCH = 8


def _warmth(photo: Float[np.ndarray, "h w 3"]) -> float:
    red, _, blue = measure(photo).channels
    return red - blue


DIRECTIONS: dict[str, Callable[[np.ndarray], float]] = {
    **dict.fromkeys(("brighter", "darker"), lambda photo: measure(photo).luminance),
    **dict.fromkeys(("contrast_up", "contrast_down"), lambda photo: measure(photo).contrast),
    **dict.fromkeys(("saturate", "mute"), lambda photo: measure(photo).saturation),
    **dict.fromkeys(("warmer", "cooler"), _warmth),
}


@dataclass(frozen=True)
class KindReport:
    """One kind of edit, averaged over its examples.

    Attributes:
        unedited_l1: distance of the photo, as it was, to the true result.
        l1, psnr: of the edited photo to the true result.
        direction: share of edits that moved the photo's measured property the right way; None for other kinds.
        named: share of expressive instructions that name this edit.
    """

    kind: str
    examples: int
    unedited_l1: float
    l1: float
    psnr: float
    direction: float | None
    named: float


@dataclass(frozen=True)
class Report:
    """The suite's figures. `reconstruction_psnr` is the autoencoder's alone; `repairs` are the edits whose right
    answer depends on the photo."""

    resolution: int
    photos: int
    reconstruction_psnr: float
    kinds: tuple[KindReport, ...]
    repairs: tuple[KindReport, ...]

    @property
    def summary(self) -> dict[str, float | int]:
        """The figures that sum the suite up; `halved` counts global edits at no more than half the unedited L1,
        among those where that is above 0.05."""
        visible = [k for k in self.kinds if k.unedited_l1 > 0.05]
        directions = [k.direction for k in self.kinds if k.direction is not None]
        return {
            "reconstruction_psnr": self.reconstruction_psnr,
            "halved": sum(k.l1 <= 0.5 * k.unedited_l1 for k in visible),
            "visible_kinds": len(visible),
            "mean_psnr": float(np.mean([k.psnr for k in self.kinds])),
            "direction": float(np.mean(directions)),
            "named": float(np.mean([k.named for k in self.kinds])),
            "repairs_named": float(np.mean([k.named for k in self.repairs])),
        }

    def to_json(self) -> dict:
        """Everything, for machines."""
        return {**asdict(self), "summary": self.summary}


def reconstruct(editor: Editor, photos: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Photos of one size through the autoencoder and back, without any edit."""
    vae = MGIE(editor.config).vae

    @jax.jit
    def there_and_back(params, pixels):
        variables = {"params": params}
        latents = vae.apply(variables, pixels, method="encode").mode()
        return vae.apply(variables, latents, method="decode")

    restored = []
    for photo in photos:
        with on_mesh_of(editor.params["vae"]):
            pixels = there_and_back(editor.params["vae"], jnp.asarray(unit(photo) * 2 - 1)[None])[0]
        restored.append(np.asarray(jnp.round(jnp.clip(pixels * 127.5 + 127.5, 0, 255))).astype(np.uint8))
    return restored


def photo_ops(
    editor: Editor,
    photos: Sequence[UInt8[np.ndarray, "h w 3"]],
    per_kind: int = 16,
    steps: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    keep: Callable[[EditExample, EditResult], None] | None = None,
) -> Report:
    """Runs the suite.

    Args:
        editor: the model.
        photos: photos it was not trained on.
        per_kind: examples of every kind of edit.
        steps: denoising steps, by default the model's.
        progress: called with (edits done, edits in all).
        keep: called with every example and its result, to make pictures of, say.
    """
    size = editor.config.sampling.resolution
    pairs = EditPairs(photos, split="heldout", seed=0, size=size)
    kinds = (*GLOBAL_OPS, *REPAIRS)
    reports = {}
    for done, kind in enumerate(kinds):
        examples = [pairs.example_of(kind, i) for i in range(per_kind)]
        results: list[EditResult] = []
        for start in range(0, per_kind, BATCH):
            part = examples[start : start + BATCH]
            results += editor.edit_many(
                [Image.fromarray(example.source) for example in part],
                [example.instruction for example in part],
                seeds=[start + i for i in range(len(part))],
                steps=steps,
            )
            if progress:
                progress(done * per_kind + len(results), len(kinds) * per_kind)
        if keep:
            for example, result in zip(examples, results, strict=True):
                keep(example, result)
        reports[kind] = _report(kind, examples, results)
    squares = [EditPairs([photo], split="heldout", size=size).example_of("invert", 0).source for photo in photos]
    restored = reconstruct(editor, squares)
    return Report(
        resolution=size,
        photos=len(photos),
        reconstruction_psnr=float(np.mean([psnr(unit(a), unit(b)) for a, b in zip(squares, restored, strict=True)])),
        kinds=tuple(reports[kind] for kind in GLOBAL_OPS),
        repairs=tuple(reports[kind] for kind in REPAIRS),
    )


def _report(kind: str, examples: list[EditExample], results: list[EditResult]) -> KindReport:
    rows = []
    for example, result in zip(examples, results, strict=True):
        source, target, edited = unit(example.source), unit(example.target), unit(np.asarray(result.image))
        direction = None
        if kind in DIRECTIONS:
            of = DIRECTIONS[kind]
            direction = np.sign(of(edited) - of(source)) == np.sign(of(target) - of(source))
        rows.append((l1(source, target), l1(edited, target), psnr(edited, target), direction,
                     named_edit(result.expressive) == kind))  # fmt: skip
    before, after, quality, directions, named = zip(*rows, strict=True)
    return KindReport(
        kind=kind,
        examples=len(examples),
        unedited_l1=float(np.mean(before)),
        l1=float(np.mean(after)),
        psnr=float(np.mean(quality)),
        direction=None if kind not in DIRECTIONS else float(np.mean(directions)),
        named=float(np.mean(named)),
    )
