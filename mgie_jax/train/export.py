"""A checkpoint and the model directory its run began with, put together to a model directory."""

from collections.abc import Mapping

import jax
import ml_collections
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from mgie_jax.data.photos import load as load_photos
from mgie_jax.paths import AnyPath
from mgie_jax.train.start import init_dir
from mgie_jax.train.vae import normalise_latents
from mgie_jax.weights.files import TABLES, expected, part_tensors, write_model_dir
from mgie_jax.weights.model_config import load_config
from mgie_jax.weights.rules import iter_torch, match

NORMALISE_ON = 64  # photos


def export(
    config: ml_collections.ConfigDict, workdir: AnyPath, trained: Mapping, path: AnyPath, *,
    init: AnyPath | None = None, dtype: str = "", overwrite: bool = False,
) -> None:  # fmt: skip
    """Writes what a run trained, and what it left as it was, as a model directory.

    The files depend on the numbers alone: equal parameters give equal bytes. What was frozen is copied from the
    directory the run began with, tensor by tensor, and not from the precision it was held in.

    Args:
        config: of the run.
        trained: nested dicts of whole arrays, or of what NumPy makes one of when it is asked for (`gather.Whole`): the
            trainable parameters, or their averages.
        path: the directory to make.
        init: where the model is that the run began with, if it has been moved.
        dtype: of the written tensors; empty: `config.export_dtype`.

    Raises:
        ValueError: the model the run began with is missing or of other sizes, or `path` exists.
        FileNotFoundError: for a whole autoencoder's run, `config.photos` is missing.
    """
    begun = init_dir(config, workdir) if init is None else init
    model = load_config(begun)
    if config.stage == "vae" and not config.trainable:  # the latents are new, and nothing reads them yet
        photos = list(load_photos(config.photos, "train").values())[:NORMALISE_ON]
        squares = [_square(photo, model.vae.sample_size) for photo in photos]
        trained = {"vae": normalise_latents(model.vae, jax.tree.map(np.asarray, trained["vae"]), squares)}
    parts = {}
    for part, template in expected(model).items():
        tensors = part_tensors(begun, part)
        kept = {key: tensors[name] for key, name in match(template, tensors, part, TABLES[part]).items()}
        kept.pop("emb", None)  # the trained embedding's own rows are written in its place
        parts[part] = (kept | dict(iter_torch(_folder(trained, part)))).items()
    write_model_dir(path, model, parts, begun / "tokenizer", dtype or config.export_dtype, overwrite)


def _folder(trained: Mapping, part: str) -> Mapping:
    """The part of the tree that is in one folder of a model directory."""
    mllm = dict(trained.get("mllm", {}))
    tower = mllm.pop("vision_tower", {})
    return {**trained, "mllm": mllm, "vision_tower": tower}.get(part, {})


def _square(photo: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "s s 3"]:
    return np.asarray(ImageOps.fit(Image.fromarray(photo), (size, size), Image.Resampling.LANCZOS))
