"""A model directory becomes an `Editor`."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from mgie_jax import first
from mgie_jax.compilation import enable_compilation_cache, program_store
from mgie_jax.editor import Editor, laid_out
from mgie_jax.models.quantize import check, quantized
from mgie_jax.paths import to_path
from mgie_jax.sharding import make_mesh, param_sharding
from mgie_jax.weights.files import load_model_dir, load_tokenizer, read_whole
from mgie_jax.weights.model_config import load_config
from mgie_jax.weights.rules import sharded


def default_model_dir() -> Path:
    """The bundled model's folder."""
    return Path(__file__).parent / "assets" / "default"


def load(
    model_dir: str | os.PathLike | None = None, *, mesh: Sequence[int] | None = None, dtype: str = "float32",
    quantize: str | None = None, devices: Sequence[jax.Device] | None = None, size: tuple[int, int] | None = None,
) -> Editor:  # fmt: skip
    """An editor with the model of a model directory, by default the bundled one.

    Args:
        mesh: sizes of the axes data, fsdp, tensor over all devices, of which one may be -1 (`sharding.make_mesh`); each
            device then reads and holds its own part of the weights. None: one device.
        dtype: of the weights and the arithmetic, "float32" or "bfloat16".
        quantize: keep the weights of the LLM and the UNet in int8, half of bfloat16's memory: "int8_weights" multiplies
            in `dtype`, "int8" in int8 too. Other pictures come of it than without, about as good.
        devices: those of the mesh, in place of all.
        size: (width, height) of the photo that is edited first, where it is known: the programs of such an edit are
            then loaded while the weights are read, if they are kept.

    Raises:
        ModelDirError: the folder is no whole model; the message names the file and what to do.
        ValueError: the mesh does not fit the devices; there is no such `quantize`, or qwix is not installed.
    """
    check(quantize)
    enable_compilation_cache()
    path = default_model_dir() if model_dir is None else to_path(model_dir)
    found = None if mesh is None else make_mesh(mesh, devices)
    place = read_whole if found is None else sharded(partial(param_sharding, found))
    store, config = program_store(found), load_config(path)
    told, begun = repr((config, dtype, quantize)), None
    if store is not None and found is None and size is not None:
        begun = first.begin(told, store, config, size)
    config, params = load_model_dir(path, jnp.dtype(dtype), place if quantize is None else quantized(place))
    if found is None:
        params["mllm"] = laid_out(params["mllm"])  # here, so that no layer is in memory twice
    tokenizer = load_tokenizer(path, config)
    editor = Editor(config, params, tokenizer, mesh=found, dtype=jnp.dtype(dtype), quantize=quantize, begun=begun)
    if store is not None and found is None:
        first.remember(told, editor.known())
    return editor
