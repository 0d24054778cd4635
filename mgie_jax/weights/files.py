"""The model directory: one folder a part, each as diffusers or transformers would write it.

    model_index.json          what each folder is, and under "mgie" how the model is meant to be asked
    unet/  vae/               config.json, diffusion_pytorch_model.safetensors
    scheduler/                scheduler_config.json
    vision_tower/             config.json, model.safetensors, preprocessor_config.json
    mllm/                     config.json, model.safetensors: LlamaForCausalLM and `model.mm_projector`
    edit_head/                config.json, model.safetensors: the edit head and `emb`, its eight [IMG] rows
    tokenizer/                tokenizer.json, tokenizer_config.json, special_tokens_map.json
    SHA256SUMS                of each of these files

Weights may be sharded (`*.safetensors.index.json`). A directory appears under its name only when whole.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgie_jax.compilation import kept_shapes
from mgie_jax.models.mgie import MGIE, NUM_IMG_TOKENS
from mgie_jax.models.presets import MGIEConfig
from mgie_jax.paths import AnyPath, absolute, is_remote, make_folder, to_path
from mgie_jax.text.prompt import IM_PATCH, PromptTokenizer
from mgie_jax.weights import tables
from mgie_jax.weights.atomic import copy_file, is_there, new_folder, write_sums, write_text
from mgie_jax.weights.model_config import config_files, load_config
from mgie_jax.weights.rules import KeyMismatch, LazyLeaf, Place, from_torch, iter_torch, match
from mgie_jax.weights.tensor import ModelDirError, Tensor, last_rows
from mgie_jax.weights.tensors import SHARD_BYTES, read_tensors, write_tensors

TABLES = {
    "vision_tower": tables.VISION_TOWER,
    "mllm": tables.MLLM,
    "edit_head": tables.EDIT_HEAD,
    "unet": tables.UNET,
    "vae": tables.VAE,
}


INDEX = "model_index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")
_EMBEDDING = "model.embed_tokens.weight"


def _stem(part: str) -> str:
    return "diffusion_pytorch_model" if part in ("unet", "vae") else "model"


def _by_part(params: Mapping) -> dict[str, dict]:
    """The parameter tree, regrouped by folder."""
    mllm = dict(params["mllm"])
    tower = mllm.pop("vision_tower")
    head = dict(params["edit_head"]) | ({"emb": params["emb"]} if "emb" in params else {})
    return {"vision_tower": tower, "mllm": mllm, "edit_head": head, "unet": params["unet"], "vae": params["vae"]}


def _with_emb(head: Mapping[str, Any], mllm: Mapping[str, Any]) -> dict[str, Any]:
    """The edit head's tensors with `emb`: where absent, the last eight rows of the MLLM's embedding."""
    rows = mllm.get(_EMBEDDING)
    if "emb" in head or rows is None or len(rows.shape) != 2 or rows.shape[0] < NUM_IMG_TOKENS:
        return dict(head)
    return dict(head) | {"emb": last_rows(rows, NUM_IMG_TOKENS)}


@lru_cache(maxsize=8)  # tracing every network takes seconds
def _templates(config: MGIEConfig, dtype: np.dtype) -> dict[str, dict]:
    try:
        shapes = kept_shapes(repr(config), MGIE(config).shapes)
    except Exception as error:  # sizes that are fine one by one may still make no network: whatever flax then raises
        raise ModelDirError(f"the configuration describes no network: {str(error).splitlines()[:1]}") from error
    shapes["emb"] = jax.ShapeDtypeStruct((NUM_IMG_TOKENS, config.mllm.llm.hidden_size), jnp.float32)
    return _by_part(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes))


def expected(config: MGIEConfig) -> dict[str, dict]:
    """The tree of shapes of each part's parameters.

    Raises:
      ModelDirError: no network has these sizes.
    """
    return _templates(config, np.dtype(np.float32))


def part_tensors(path: str | AnyPath, part: str) -> dict[str, Tensor]:
    """The tensors of one folder of a model directory, none read yet; the edit head's with `emb`.

    Raises:
      ModelDirError: folder or file missing, cut short or damaged.
    """
    folder = to_path(path) / part
    if not folder.is_dir():
        raise ModelDirError(f"{folder} is missing; a model directory must have the folder {part}/")
    tensors = read_tensors(folder, _stem(part))
    if part == "edit_head" and "emb" not in tensors:
        return _with_emb(tensors, part_tensors(path, "mllm"))
    return tensors


def load_part(
    path: str | AnyPath, part: str, template: Mapping, place: Place = lambda path, leaf: np.asarray(leaf)
) -> dict:
    """The parameters of one folder of a model directory, or of any folder of diffusers or transformers.

    Args:
      path: the model directory.
      part: the folder's name, a key of `TABLES`.
      template: the shapes and dtypes expected.
      place: called with each parameter's path within the part and the parameter still in its files; see
        `rules.from_torch`.

    Raises:
      ModelDirError: folder or file missing, cut short or damaged; a key missing, left over or misshaped.
    """
    try:
        return from_torch(template, part_tensors(path, part), part, TABLES[part], place)
    except KeyMismatch as error:
        raise ModelDirError(f"{to_path(path) / part / _stem(part)}.safetensors: {error}") from error


def read_whole(path: tuple[str, ...], leaf: LazyLeaf) -> jax.Array:
    """A `place`: each parameter goes to JAX's default device."""
    return jax.device_put(np.asarray(leaf), may_alias=False)  # `jnp.asarray` would compile a program for each shape


def load_model_dir(path: str | AnyPath, dtype: Any = jnp.float32, place: Place = read_whole) -> tuple[MGIEConfig, dict]:
    """A model directory's configuration and parameters.

    Args:
      path: the directory.
      dtype: every parameter is cast to it.
      place: called with each parameter's path in the tree and the parameter still in its files; by default it goes
        to JAX's default device. With `rules.sharded` each device reads its own part, and no host ever holds more
        than one part beyond what its devices keep.

    Returns:
      The configuration, and {"mllm", "edit_head", "unet", "vae", "emb"}: `MGIE.init`'s tree and `emb` (8, d).

    Raises:
      ModelDirError: anything is missing, damaged, or of other shapes than the configuration says.
    """
    path = to_path(path)
    config = load_config(path)
    loaded = {}
    for part, template in _templates(config, np.dtype(dtype)).items():
        top = {"vision_tower": ("mllm", "vision_tower")}.get(part, (part,))

        def put(name: tuple[str, ...], leaf: LazyLeaf, top=top) -> Any:
            return place(name if name == ("emb",) else top + name, leaf)

        loaded[part] = load_part(path, part, template, put)
    emb = loaded["edit_head"].pop("emb")
    mllm = loaded["mllm"] | {"vision_tower": loaded["vision_tower"]}
    return config, {"mllm": mllm, **{part: loaded[part] for part in ("edit_head", "unet", "vae")}, "emb": emb}


def load_mllm(path: str | AnyPath, config: MGIEConfig, dtype: Any, place: Place) -> dict:
    """The MLLM alone of a model directory, its vision tower with it: `load_model_dir`'s "mllm".

    Args:
      place: called with each parameter's path in the MLLM.

    Raises:
      ModelDirError: as `load_model_dir`.
    """
    template = _templates(config, np.dtype(dtype))

    def put(path: tuple[str, ...], leaf: LazyLeaf) -> Any:
        return place(("vision_tower", *path), leaf)

    return load_part(path, "mllm", template["mllm"], place) | {
        "vision_tower": load_part(path, "vision_tower", template["vision_tower"], put)
    }


def open_tokenizer(folder: AnyPath) -> Any:
    """The tokenizer of transformers in a folder; from a bucket its few small files are copied for that.

    Raises whatever the tokenizers library does where they are damaged.
    """
    from transformers import PreTrainedTokenizerFast  # seconds to import, and only text needs it

    if not is_remote(folder):
        return PreTrainedTokenizerFast.from_pretrained(folder)
    with TemporaryDirectory() as here:
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                copy_file(folder / name, to_path(here) / name)
        return PreTrainedTokenizerFast.from_pretrained(here)


def load_tokenizer(path: str | AnyPath, config: MGIEConfig) -> PromptTokenizer:
    """The prompt's tokenizer of a model directory.

    Raises:
      ModelDirError: it is missing or damaged, or does not fit the model's vocabulary.
    """
    folder = to_path(path) / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        raise ModelDirError(f"{folder / 'tokenizer.json'} is missing; a model directory must hold it")
    try:
        tokenizer = PromptTokenizer(open_tokenizer(folder), config.mllm.vision.num_patches, config.prompt)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise ModelDirError(f"{folder} holds no usable tokenizer: {error}") from error
    found = (tokenizer.im_patch_id, tokenizer.vocab_size)
    if found[0] != config.mllm.im_patch_id or found[1] > config.mllm.llm.vocab_size:
        raise ModelDirError(
            f"{folder} does not belong to this model: {IM_PATCH} is {found[0]} of {found[1]} tokens, "
            f"the model has {config.mllm.im_patch_id} of {config.mllm.llm.vocab_size}"
        )
    return tokenizer


def write_model_dir(
    path: str | AnyPath,
    config: MGIEConfig,
    parts: Mapping[str, Iterable[tuple[str, Any]]],
    tokenizer_dir: str | AnyPath,
    dtype: Any = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes a model directory from PyTorch tensors, one at a time; diffusers, transformers and we read it.

    Every key and shape is checked before anything is written. The directory is there once it is whole, locally and in
    a bucket (`atomic.new_folder`): whatever interrupts this, `path` holds the old model, the new one, or none. With it
    goes SHA256SUMS, which `weights.check` and `sha256sum -c` compare the files with.

    Args:
      path: the directory to make; its parent is made where missing.
      config: the model's configuration.
      parts: for each of `TABLES` its (PyTorch key, tensor) pairs, of `weights.tensors.Tensor`, arrays or anything
        else with shape, dtype and slices. Keys may be as files in circulation have them (`weights.tables`). Where
        "edit_head" lacks `emb` the last eight rows of the MLLM's embedding are it.
      tokenizer_dir: folder of `tokenizer.json` and its companions, as `save_tokenizer` writes it.
      dtype: what floats are cast to; None keeps each tensor as it is, bit for bit.
      overwrite: replace what is at `path`.
      shard_bytes: size beyond which a part's weights are split over several files.
      progress: called with the bytes written after each tensor.

    Raises:
      ModelDirError: `path` exists and `overwrite` is False, there is no tokenizer, or the tensors do not fit.
    """
    path, tokenizer_dir = absolute(path), to_path(tokenizer_dir)
    if is_there(path, INDEX) and not overwrite:
        raise ModelDirError(f"{path} exists already; choose another name or ask to overwrite it")
    if not (tokenizer_dir / "tokenizer.json").is_file():
        raise ModelDirError(f"{tokenizer_dir} holds no tokenizer.json; save the tokenizer there first")
    if parts.keys() != TABLES.keys():
        raise ModelDirError(f"cannot write {path}: its parts are {', '.join(TABLES)}, given {', '.join(parts)}")
    found = {part: _unique(pairs, part) for part, pairs in parts.items()}
    found["edit_head"] = _with_emb(found["edit_head"], found["mllm"])
    tensors, dtypes = {}, {}
    for part, template in expected(config).items():
        try:
            source = match(template, found[part], part, TABLES[part])
        except KeyMismatch as error:
            raise ModelDirError(f"cannot write {path}: {error}") from error
        tensors[part] = {key: found[part][name] for key, name in source.items()}
        kept = Counter(np.dtype(tensor.dtype).name for tensor in tensors[part].values())
        dtypes[part] = kept.most_common(1)[0][0] if dtype is None else np.dtype(dtype).name
    fields = config_files(config, dtypes).items()
    texts = {name: json.dumps(value, indent=2, sort_keys=True) + "\n" for name, value in fields}
    with new_folder(path, INDEX, overwrite) as new:
        sums = {}
        for part, named in tensors.items():
            make_folder(new / part)
            written = write_tensors(new / part, _stem(part), named.items(), dtype, shard_bytes, progress)
            sums |= {f"{part}/{name}": digest for name, digest in written.items()}
        make_folder(new / "scheduler")
        make_folder(new / "tokenizer")
        for name in TOKENIZER_FILES:
            if (tokenizer_dir / name).is_file():
                sums[f"tokenizer/{name}"] = copy_file(tokenizer_dir / name, new / "tokenizer" / name)
        index = texts.pop(INDEX)
        for name, text in texts.items():
            sums[name] = write_text(new / name, text)
        write_sums(new, sums | {INDEX: hashlib.sha256(index.encode()).hexdigest()})
        write_text(new / INDEX, index)  # last, because it is what makes a folder a model directory


def _unique(pairs: Iterable[tuple[str, Any]], part: str) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for key, tensor in pairs:
        if key in tensors:
            raise ModelDirError(f"{part}: {key} is there twice; a network has one tensor of a name")
        tensors[key] = tensor
    return tensors


def save_model_dir(
    path: str | AnyPath,
    config: MGIEConfig,
    params: Mapping,
    tokenizer_dir: str | AnyPath,
    dtype: Any = jnp.float32,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a model directory from JAX parameters; see `write_model_dir`.

    Args:
      params: {"mllm", "edit_head", "unet", "vae"} and optionally "emb".

    Raises:
      ModelDirError: `path` exists and `overwrite` is False, there is no tokenizer, or params do not fit.
    """
    parts = {part: iter_torch(tree) for part, tree in _by_part(params).items()}
    write_model_dir(path, config, parts, tokenizer_dir, dtype, overwrite, shard_bytes)
