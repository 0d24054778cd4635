"""What all edits of a run have in common, and what an edited picture's file says of how it was made."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from mgie_jax.paths import AnyPath
from mgie_jax.weights.atomic import fingerprint
from mgie_jax.weights.model_config import load_config


@dataclass(frozen=True)
class Settings:
    """How edits are made, whatever the photo.

    Attributes:
      model: `weights.atomic.fingerprint` of the model directory.
      dtype: "float32" or "bfloat16".
      quantize: None, or one of `models.quantize.MODES`.
    """

    model: str
    steps: int
    sampler: str
    guidance_scale: float
    image_guidance_scale: float
    dtype: str
    quantize: str | None = None

    @classmethod
    def of(
        cls, model_dir: AnyPath, *, steps: int | None, sampler: str | None, guidance_scale: float | None,
        image_guidance_scale: float | None, dtype: str, quantize: str | None = None,
    ) -> Settings:  # fmt: skip
        """The model's own where None is given. Raises ModelDirError where there is no model."""
        usual = load_config(model_dir).sampling
        return cls(
            model=fingerprint(model_dir),
            steps=usual.steps if steps is None else steps,
            sampler=usual.sampler if sampler is None else sampler,
            guidance_scale=float(usual.guidance_scale if guidance_scale is None else guidance_scale),
            image_guidance_scale=float(
                usual.image_guidance_scale if image_guidance_scale is None else image_guidance_scale
            ),
            dtype=dtype,
            quantize=quantize,
        )

    @property
    def sampling(self) -> dict:
        """Keyword arguments of `Editor.edit` and `Editor.edit_prepared`."""
        return {name: value for name, value in asdict(self).items() if name not in ("model", "dtype", "quantize")}


def about(instruction: str, expressive: str, seed: int, settings: Settings) -> dict[str, str]:
    """What `photo.save_atomic` writes into the file of an edited picture."""
    return {
        "Software": "MGIE-JAX",
        "Instruction": instruction,
        "Expressive": expressive,
        "Seed": str(seed),
        "Model": f"sha256:{settings.model}",
        "Steps": str(settings.steps),
        "Sampler": settings.sampler,
        "Guidance-Scale": f"{settings.guidance_scale:g}",
        "Image-Guidance-Scale": f"{settings.image_guidance_scale:g}",
        "Dtype": settings.dtype,
        **({"Quantize": settings.quantize} if settings.quantize else {}),
    }
