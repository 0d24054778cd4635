"""The model directory: one folder a part, each as diffusers or transformers would write it.

    model_index.json          what each folder is, and under "mgie" how the model is meant to be asked
    unet/  vae/               config.json, diffusion_pytorch_model.safetensors
    scheduler/                scheduler_config.json
    vision_tower/             config.json, model.safetensors, preprocessor_config.json
    mllm/                     config.json, model.safetensors: LlamaForCausalLM and `model.mm_projector`
    edit_head/                config.json, model.safetensors: the edit head and `emb`, its eight [IMG] rows
    tokenizer/                tokenizer.json, tokenizer_config.json, special_tokens_map.json

Weights may be sharded (`*.safetensors.index.json`). A directory appears under its name only when whole.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgie_jax.models.mgie import MGIE, NUM_IMG_TOKENS
from mgie_jax.models.presets import MGIEConfig
from mgie_jax.text.prompt import IM_PATCH, PromptTokenizer
from mgie_jax.weights import tables
from mgie_jax.weights.model_config import config_files, load_config
from mgie_jax.weights.rules import KeyMismatch, from_torch, iter_torch, leaves, match
from mgie_jax.weights.tensors import SHARD_BYTES, ModelDirError, read_tensors, write_tensors

Place = Callable[[tuple[str, ...], np.ndarray], Any]

TABLES = {
    "vision_tower": tables.VISION_TOWER,
    "mllm": tables.MLLM,
    "edit_head": tables.EDIT_HEAD,
    "unet": tables.UNET,
    "vae": tables.VAE,
}


def _stem(part: str) -> str:
    return "diffusion_pytorch_model" if part in ("unet", "vae") else "model"


def _by_part(params: Mapping) -> dict[str, dict]:
    """The parameter tree, regrouped by folder; `emb`, where absent, is the embedding's last eight rows."""
    mllm = dict(params["mllm"])
    tower = mllm.pop("vision_tower")
    emb = params.get("emb")
    if emb is None:
        emb = mllm["model"]["embed_tokens"]["embedding"][-NUM_IMG_TOKENS:]
    return {
        "vision_tower": tower,
        "mllm": mllm,
        "edit_head": dict(params["edit_head"]) | {"emb": emb},
        "unet": params["unet"],
        "vae": params["vae"],
    }


@lru_cache(maxsize=8)  # tracing every network takes seconds
def _templates(config: MGIEConfig, dtype: np.dtype) -> dict[str, dict]:
    shapes = MGIE(config).shapes()
    shapes["emb"] = jax.ShapeDtypeStruct((NUM_IMG_TOKENS, config.mllm.llm.hidden_size), jnp.float32)
    return _by_part(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes))


def load_part(
    path: str | Path, part: str, template: Mapping, place: Place = lambda path, array: array
) -> dict:
    """The parameters of one folder of a model directory, or of any folder of diffusers or transformers.

    Args:
      path: the model directory.
      part: the folder's name, a key of `TABLES`.
      template: the shapes and dtypes expected.
      place: called with each parameter's path within the part and its host array; see `rules.from_torch`.

    Raises:
      ModelDirError: folder or file missing, cut short or damaged; a key missing, left over or misshaped.
    """
    folder = Path(path) / part
    if not folder.is_dir():
        raise ModelDirError(f"{folder} is missing; a model directory must have the folder {part}/")
    tensors = read_tensors(folder, _stem(part))
    if part == "edit_head" and "emb" in template and "emb" not in tensors:
        template = {name: leaf for name, leaf in template.items() if name != "emb"}
    try:
        return from_torch(template, tensors, part, TABLES[part], place)
    except KeyMismatch as error:
        raise ModelDirError(f"{folder}/{_stem(part)}.safetensors: {error}") from error


def load_model_dir(
    path: str | Path, dtype: Any = jnp.float32, place: Place = lambda path, array: jnp.asarray(array)
) -> tuple[MGIEConfig, dict]:
    """A model directory's configuration and parameters.

    Args:
      path: the directory.
      dtype: every parameter is cast to it.
      place: called with each parameter's path in the tree and its host array as soon as it is read; by
        default it goes to JAX's default device. With `jax.device_put` to a sharding no host ever holds the
        whole model.

    Returns:
      The configuration, and {"mllm", "edit_head", "unet", "vae", "emb"}: `MGIE.init`'s tree and `emb` (8, d).

    Raises:
      ModelDirError: anything is missing, damaged, or of other shapes than the configuration says.
    """
    path = Path(path)
    config = load_config(path)
    loaded = {}
    for part, template in _templates(config, np.dtype(dtype)).items():
        top = {"vision_tower": ("mllm", "vision_tower")}.get(part, (part,))

        def put(leaf: tuple[str, ...], array: np.ndarray, top=top) -> Any:
            return place(leaf if leaf == ("emb",) else top + leaf, array)

        loaded[part] = load_part(path, part, template, put)
    emb = loaded["edit_head"].pop("emb", None)
    if emb is None:
        rows = loaded["mllm"]["model"]["embed_tokens"]["embedding"][-NUM_IMG_TOKENS:]
        emb = place(("emb",), np.asarray(rows))
    mllm = loaded["mllm"] | {"vision_tower": loaded["vision_tower"]}
    return config, {"mllm": mllm, **{part: loaded[part] for part in ("edit_head", "unet", "vae")}, "emb": emb}


def load_tokenizer(path: str | Path, config: MGIEConfig) -> PromptTokenizer:
    """The prompt's tokenizer of a model directory.

    Raises:
      ModelDirError: it is missing or damaged, or does not fit the model's vocabulary.
    """
    from transformers import PreTrainedTokenizerFast  # seconds to import, and only text needs it

    folder = Path(path) / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        raise ModelDirError(f"{folder / 'tokenizer.json'} is missing; a model directory must hold it")
    try:
        tokenizer = PromptTokenizer(
            PreTrainedTokenizerFast.from_pretrained(folder), config.mllm.vision.num_patches, config.prompt
        )
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise ModelDirError(f"{folder} holds no usable tokenizer: {error}") from error
    found = (tokenizer.im_patch_id, tokenizer.vocab_size)
    if found[0] != config.mllm.im_patch_id or found[1] > config.mllm.llm.vocab_size:
        raise ModelDirError(
            f"{folder} does not belong to this model: {IM_PATCH} is {found[0]} of {found[1]} tokens, "
            f"the model has {config.mllm.im_patch_id} of {config.mllm.llm.vocab_size}"
        )
    return tokenizer


def _cast(tensors: Iterable[tuple[str, np.ndarray]], dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    for key, tensor in tensors:
        yield key, tensor.astype(dtype, copy=False)


def save_model_dir(
    path: str | Path,
    config: MGIEConfig,
    params: Mapping,
    tokenizer_dir: str | Path,
    dtype: Any = jnp.float32,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a model directory that diffusers, transformers and `load_model_dir` read.

    All is written into a hidden folder beside `path`, which takes its name when whole: whatever interrupts
    this, `path` holds the old model, the new one, or (for an instant, while one replaces the other) nothing.

    Args:
      path: the directory to make; its parent is made where missing.
      config: the model's configuration.
      params: {"mllm", "edit_head", "unet", "vae"} and optionally "emb".
      tokenizer_dir: folder of `tokenizer.json` and its companions, as `save_tokenizer` writes it.
      dtype: of the written tensors.
      overwrite: replace what is at `path`.
      shard_bytes: size beyond which a part's weights are split over several files.

    Raises:
      ModelDirError: `path` exists and `overwrite` is False, there is no tokenizer, or params do not fit.
    """
    path, tokenizer_dir, dtype = Path(path).absolute(), Path(tokenizer_dir), np.dtype(dtype)
    if path.exists() and not overwrite:
        raise ModelDirError(f"{path} exists already; choose another name or ask to overwrite it")
    if not (tokenizer_dir / "tokenizer.json").is_file():
        raise ModelDirError(f"{tokenizer_dir} holds no tokenizer.json; save the tokenizer there first")
    parts = _by_part(params)
    for part, template in _templates(config, dtype).items():
        try:
            match(template, {key: leaf for leaf, _ in leaves(parts[part]) for key in leaf.keys}, part)
        except KeyMismatch as error:
            raise ModelDirError(f"cannot write {path}: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        for part in (*parts, "scheduler", "tokenizer"):
            (new / part).mkdir()
        for part, tree in parts.items():
            write_tensors(new / part, _stem(part), _cast(iter_torch(tree), dtype), shard_bytes)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model"):
            if (tokenizer_dir / name).is_file():
                shutil.copyfile(tokenizer_dir / name, new / "tokenizer" / name)
        for name, fields in config_files(config, dtype.name).items():
            (new / name).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
        new.chmod(0o777 & ~_umask())
        _replace(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _replace(new: Path, path: Path) -> None:
    """`new` gets the name `path`; what had it is removed."""
    if not path.exists():
        new.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
    path.rename(old / path.name)
    try:
        new.rename(path)
    except OSError:
        (old / path.name).rename(path)
        raise
    shutil.rmtree(old)


def _umask() -> int:
    # Reading the umask means setting it; mkdtemp's 0700 would hide the model from its owner's group.
    mask = os.umask(0)
    os.umask(mask)
    return mask
