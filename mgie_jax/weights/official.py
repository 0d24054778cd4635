"""The released PyTorch files of MGIE <-> the parts of a model directory. Tensors are renamed, never computed.

Facts of the reference implementation: `mllm.pt` holds what was trained of the language model
(`model.embed_tokens.weight`, `lm_head.weight`), the edit head (`edit_head.*`) and mostly `emb`, the eight [IMG] rows;
`unet.pt` is the UNet's state dict. All else is LLaVA's, CLIP's and Stable Diffusion's own. The trainer's snapshots
hold everything but CLIP under `model.*`, `lm_head.*`, `edit_head.*`, `unet.*` and `vae.*`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mgie_jax.diffusion.schedule import ScheduleConfig
from mgie_jax.models.clip import CLIPVisionConfig
from mgie_jax.models.edit_head import EditHeadConfig
from mgie_jax.models.llama import LlamaConfig
from mgie_jax.models.mgie import NUM_IMG_TOKENS
from mgie_jax.models.mllm import MLLMConfig
from mgie_jax.models.presets import MGIEConfig, SamplingConfig
from mgie_jax.models.unet import UNetConfig
from mgie_jax.models.vae import VAEConfig
from mgie_jax.paths import AnyPath
from mgie_jax.text.prompt import PromptConfig, PromptTokenizer
from mgie_jax.weights.atomic import new_folder
from mgie_jax.weights.configs import check_fixed, from_fields, to_fields
from mgie_jax.weights.files import TABLES, expected, part_tensors
from mgie_jax.weights.llava import load_llava_tokenizer
from mgie_jax.weights.model_config import llama_fields, load_config
from mgie_jax.weights.rules import KeyMismatch, match
from mgie_jax.weights.tensor import ModelDirError, Slices, Tensor, cast, is_floating, last_rows, read_json
from mgie_jax.weights.tensors import open_tensors
from mgie_jax.weights.torch_files import save_pickled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NHEAD = 4  # of the released edit head; no shape tells it
_EMBEDDING, _LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
_PROMPT_TOKENS = 256  # of the 512 that the released model reads, those beside the image's 256 patches
# {prefix in the files: (part, what the prefix becomes)}
_PREFIXES = {
    "model.": ("mllm", "model."),
    "lm_head.": ("mllm", "lm_head."),
    "edit_head.": ("edit_head", ""),
    "unet.": ("unet", ""),
    "vae.": ("vae", ""),
}


@dataclass(frozen=True)
class Official:
    """A model put together: the tensors of each part, and the tokenizer with MGIE's tokens."""

    config: MGIEConfig
    parts: dict[str, dict[str, Tensor]]
    tokenizer: PreTrainedTokenizerFast


def from_official(
    llava: AnyPath | None, mgie: AnyPath, clip: AnyPath, diffusion: AnyPath, nhead: int = NHEAD
) -> Official:
    """The model that the released files make together. Nothing is read but configurations, shapes and tokens.

    Args:
      llava: LLaVA's folder: config.json, tokenizer and weights; None where a snapshot has these itself.
      mgie: the folder with mllm.pt and unet.pt, or a snapshot of the trainer (numbered shards).
      clip: CLIP's folder, a vision tower alone or a whole CLIP.
      diffusion: a folder of diffusers with vae/, scheduler/ and unet/config.json, whose UNet's weights are not used.
      nhead: attention heads of the edit head.

    Raises:
      ModelDirError: a file or key is missing, or two of the sources do not go together.
    """
    trained, files = _trained(mgie)
    home, mllm = llava or mgie, trained["mllm"]
    if not any(key.startswith("model.layers.") for key in mllm):
        if llava is None:
            raise ModelDirError(f"{files['mllm']} holds no layers of the language model; give LLaVA's folder too")
        mllm = open_tensors(llava) | mllm
    llm, joint = _llm_fields(home / "config.json", mllm, files["mllm"])
    vision = _fields(clip / "config.json", "vision_tower", CLIPVisionConfig, nested="vision_config")
    _check_resolution(joint, vision, clip)
    tokenizer = load_llava_tokenizer(home, llm.vocab_size)
    joint |= {"vision": to_fields(vision), "llm": to_fields(llm), "mm_projector_type": _projector(mllm, home)}
    joint |= {"im_patch_id": tokenizer.get_vocab()["<im_patch>"]}
    channels = _shape(trained["unet"], "conv_in.weight", files["unet"], 4)[1]
    unet = _fields(diffusion / "unet" / "config.json", "unet", UNetConfig, in_channels=channels)
    vae = _fields(diffusion / "vae" / "config.json", "vae", VAEConfig)
    try:
        config = MGIEConfig(
            mllm=from_fields(MLLMConfig, joint, str(home / "config.json")),
            edit_head=_edit_head(trained["edit_head"], nhead, files["edit_head"]),
            unet=unet,
            vae=vae,
            schedule=_fields(diffusion / "scheduler" / "scheduler_config.json", "scheduler", ScheduleConfig),
            prompt=PromptConfig(model_max_length=vision.num_patches + _PROMPT_TOKENS),
            sampling=SamplingConfig(resolution=unet.sample_size * vae.downsampling),
        )
        PromptTokenizer(tokenizer, vision.num_patches, config.prompt)
    except ModelDirError:
        raise
    except ValueError as error:
        raise ModelDirError(f"{home}, {mgie}, {clip} and {diffusion} do not go together: {error}") from error
    head = {"emb": last_rows(mllm[_EMBEDDING], NUM_IMG_TOKENS)} | trained["edit_head"]
    parts = trained | {"mllm": mllm, "edit_head": head, "vision_tower": open_tensors(clip)}
    files |= {"mllm": f"{home} with {files['mllm'].name}", "vision_tower": clip}
    if "vae" not in parts:
        parts["vae"], files["vae"] = open_tensors(diffusion / "vae"), diffusion / "vae"
    named = {part: _matched(config, part, tensors, files[part]) for part, tensors in parts.items()}
    return Official(config, named, tokenizer)


def to_official(model: AnyPath) -> dict[str, dict[str, Tensor]]:
    """{"mllm.pt", "unet.pt"}: the tensors of each, as the released notebooks load them.

    Raises:
      ModelDirError: `model` is no whole model directory.
    """
    config, parts = load_config(model), {}
    for part in ("mllm", "edit_head", "unet"):
        parts[part] = _matched(config, part, part_tensors(model, part), model / part)
    head = {key if key == "emb" else f"edit_head.{key}": tensor for key, tensor in parts["edit_head"].items()}
    return {"mllm.pt": {key: parts["mllm"][key] for key in (_EMBEDDING, _LM_HEAD)} | head, "unet.pt": parts["unet"]}


def write_official(
    path: str | AnyPath,
    files: Mapping[str, Mapping[str, Tensor]],
    dtype: Any = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes the files of `to_official` into a folder, which has its name once it is whole.

    Args:
      dtype: what floats are cast to; None keeps each tensor as it is.
      progress: called with the bytes of each tensor once it is read.

    Raises:
      ModelDirError: torch is not installed; there is something at `path` and `overwrite` is False; a number is too
        large for `dtype`.
    """
    with new_folder(path, "mllm.pt", overwrite) as new:
        for name, tensors in files.items():
            save_pickled(new / name, {key: _read_as(tensor, dtype, progress) for key, tensor in tensors.items()})


def _read_as(tensor: Tensor, dtype: Any, progress: Callable[[int], None] | None) -> Tensor:
    """The tensor, cast and counted once it is read."""
    kept = tensor.dtype if dtype is None or not is_floating(tensor.dtype) else np.dtype(dtype)

    def read(index: Slices) -> np.ndarray:
        array = cast(tensor[index], kept, f"{tensor.path}: {tensor.key}")
        if progress:
            progress(array.nbytes)
        return array

    return replace(tensor, dtype=kept, read=read)


def _matched(config: MGIEConfig, part: str, tensors: Mapping[str, Tensor], where: AnyPath | str) -> dict[str, Tensor]:
    """The network's own tensors, under its own names; what files carry beside them is left out."""
    try:
        names = match(expected(config)[part], tensors, part, TABLES[part])
        return {key: tensors[name] for key, name in names.items()}
    except KeyMismatch as error:
        raise ModelDirError(f"{where}: {error}") from error


def _trained(mgie: AnyPath) -> tuple[dict[str, dict[str, Tensor]], dict[str, AnyPath]]:
    """What the folder has of each part, and where that is from."""
    mllm, unet = mgie / "mllm.pt", mgie / "unet.pt"
    if mllm.exists() or unet.exists():
        parts = _split(open_tensors(mllm), mllm) | {"unet": _without_prefix(open_tensors(unet))}
        files = dict.fromkeys(parts, mllm) | {"unet": unet}
    else:
        try:
            tensors = open_tensors(mgie)
        except ModelDirError as error:
            raise ModelDirError(f"{mgie} has neither mllm.pt and unet.pt nor a snapshot's shards: {error}") from error
        parts = _split(tensors, mgie)
        files = dict.fromkeys(parts, mgie)
    for part, key in (("mllm", _EMBEDDING), ("edit_head", "edit_head.*"), ("unet", "unet.*")):
        if part not in parts:
            raise ModelDirError(f"{mllm if mllm.exists() else mgie} lacks {key}; give MGIE's own files, not LLaVA's")
    for key in (_EMBEDDING, _LM_HEAD):
        _shape(parts["mllm"], key, files["mllm"])
    return parts, files


def _split(tensors: Mapping[str, Tensor], where: AnyPath) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    strange = []
    for key, tensor in tensors.items():
        prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), None)
        if key == "emb":
            parts.setdefault("edit_head", {})["emb"] = _emb(tensor)
        elif prefix is None:
            strange.append(key)
        else:
            part, new = _PREFIXES[prefix]
            parts.setdefault(part, {})[new + key.removeprefix(prefix)] = tensor
    if strange:
        known = ", ".join(f"{prefix}*" for prefix in _PREFIXES)
        raise ModelDirError(f"{where} holds {', '.join(strange[:9])}, expected only {known} and emb")
    return parts


def _without_prefix(unet: dict[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's own keys, where all have the name it had in the whole model before them."""
    if all(key.startswith("unet.") for key in unet):
        return {key.removeprefix("unet."): tensor for key, tensor in unet.items()}
    return unet


def _emb(tensor: Tensor) -> Tensor:
    """(8, d), where it may be kept as the batch of one that the edit head takes."""
    if len(tensor.shape) != 3 or tensor.shape[:2] != (1, NUM_IMG_TOKENS):
        return tensor

    def read(index: Slices):
        return tensor[slice(0, 1), *index][0]

    return replace(tensor, shape=tensor.shape[1:], read=read)


def _shape(tensors: Mapping[str, Tensor], key: str, where: AnyPath, rank: int = 2, prefix: str = "") -> tuple[int, ...]:
    """The shape of a tensor that must be there, and of so many dimensions."""
    if key not in tensors:
        raise ModelDirError(f"{where} lacks {prefix}{key}; it may be cut short, or of another model: fetch it again")
    found = tensors[key].shape
    if len(found) != rank:
        raise ModelDirError(f"{where}: {prefix}{key} has the shape {found}, expected {rank} dimensions")
    return found


def _fields(file: AnyPath, part: str, cls: type, nested: str | None = None, **known):
    fields = read_json(file)
    fields = fields.get(nested) or fields  # a whole CLIP's config.json holds the tower's under vision_config
    check_fixed(part, fields, str(file))
    return from_fields(cls, fields | known, str(file))


def _llm_fields(file: AnyPath, mllm: Mapping[str, Tensor], trained: AnyPath) -> tuple[LlamaConfig, dict]:
    """LLaMA's sizes, with as many rows as were trained, and all that LLaVA's config.json says."""
    fields = read_json(file)
    check_fixed("mllm", fields, str(file))
    rows = _shape(mllm, _EMBEDDING, trained)[0]
    return from_fields(LlamaConfig, llama_fields(fields, file) | {"vocab_size": rows}, str(file)), fields


def _projector(mllm: Mapping[str, Tensor], home: AnyPath) -> str:
    kinds = {"model.mm_projector.weight": "linear", "model.mm_projector.0.weight": "mlp2x_gelu"}
    for key, kind in kinds.items():
        if key in mllm:
            return kind
    raise ModelDirError(f"{home} lacks {' or '.join(kinds)}: it is no LLaVA; a plain LLaMA cannot see images")


def _check_resolution(llava: Mapping, vision: CLIPVisionConfig, clip: AnyPath) -> None:
    """CLIPs of one width differ in resolution, and only the name of LLaVA's tells which it was trained with."""
    found = re.search(r"patch(\d+)(?:-(\d+))?$", str(llava.get("mm_vision_tower", "")))
    if found:
        patch, side = int(found[1]), int(found[2] or 224)
        if (vision.patch_size, vision.image_size) != (patch, side):
            raise ModelDirError(
                f"{clip} sees {vision.image_size} px in patches of {vision.patch_size}, LLaVA was trained with "
                f"{llava['mm_vision_tower']}: give that CLIP"
            )


def _edit_head(head: Mapping[str, Tensor], nhead: int, where: AnyPath) -> EditHeadConfig:
    def shape(key: str, rank: int = 2) -> tuple[int, ...]:
        return _shape(head, key, where, rank, "edit_head.")

    numbers = [re.match(r"mapper\.encoder\.layers\.(\d+)\.", key) for key in head]
    d_model, llm_hidden_size = shape("llm2hid.weight")
    return EditHeadConfig(
        llm_hidden_size=llm_hidden_size,
        d_model=d_model,
        nhead=nhead,
        num_layers=max((int(found[1]) + 1 for found in numbers if found), default=0),
        dim_feedforward=shape("mapper.encoder.layers.0.linear1.weight")[0],
        num_queries=shape("query", 3)[1],
        cross_attention_dim=shape("hid2feat.weight")[0],
    )
