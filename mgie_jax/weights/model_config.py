"""`MGIEConfig` <-> the configuration files of a model directory."""

from __future__ import annotations

from collections.abc import Mapping

from mgie_jax.diffusion.schedule import ScheduleConfig
from mgie_jax.models.clip import CLIPVisionConfig
from mgie_jax.models.edit_head import EditHeadConfig
from mgie_jax.models.llama import LlamaConfig
from mgie_jax.models.mllm import MLLMConfig
from mgie_jax.models.presets import MGIEConfig, SamplingConfig
from mgie_jax.models.unet import UNetConfig
from mgie_jax.models.vae import VAEConfig
from mgie_jax.paths import AnyPath, to_path
from mgie_jax.text.prompt import IM_PATCH, PromptConfig
from mgie_jax.weights.configs import FIXED, check_fixed, from_fields, to_fields
from mgie_jax.weights.tensors import ModelDirError, read_json

_DIFFUSERS_VERSION = "0.31.0"  # the oldest whose classes were checked to read these files
_SCHEDULERS = {  # the class and its timestep_spacing
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", "linspace"),
    "ddim": ("DDIMScheduler", "leading"),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", "linspace"),
}
# What DDIM needs said. Every file has it: people load another class from a file than the one that is named in it.
_DDIM = {"clip_sample": False, "set_alpha_to_one": False}
_CLIP_PREPROCESSING = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def diffusion_files(unet: UNetConfig, vae: VAEConfig, schedule: ScheduleConfig, sampler: str) -> dict[str, dict]:
    """{file: fields} of the configuration files that diffusers reads."""
    levels, diffusers = len(vae.block_out_channels), {"_diffusers_version": _DIFFUSERS_VERSION}
    scheduler, spacing = _SCHEDULERS[sampler]
    return {
        "unet/config.json": FIXED["unet"] | diffusers | to_fields(unet),
        "vae/config.json": FIXED["vae"] | diffusers | to_fields(vae) | {
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
        },
        "scheduler/scheduler_config.json": FIXED["scheduler"] | diffusers | to_fields(schedule)
        | _DDIM | {"_class_name": scheduler, "timestep_spacing": spacing},
    }  # fmt: skip


def config_files(config: MGIEConfig, dtypes: Mapping[str, str]) -> dict[str, dict]:
    """{file: fields} of every configuration file; `dtypes` are of each part's weights."""
    vision, llm = config.mllm.vision, config.mllm.llm
    longest = config.prompt.model_max_length + config.sampling.max_new_tokens
    scheduler, _ = _SCHEDULERS[config.sampling.sampler]
    crop = {"height": vision.image_size, "width": vision.image_size}
    return diffusion_files(config.unet, config.vae, config.schedule, config.sampling.sampler) | {
        "vision_tower/config.json": FIXED["vision_tower"] | to_fields(vision)
        | {"architectures": ["CLIPVisionModel"], "torch_dtype": dtypes["vision_tower"]},
        "vision_tower/preprocessor_config.json": _CLIP_PREPROCESSING
        | {"size": {"shortest_edge": vision.image_size}, "crop_size": crop},
        "mllm/config.json": FIXED["mllm"] | to_fields(llm) | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": dtypes["mllm"],
            "max_position_embeddings": max(2048, longest),
            "mm_projector_type": config.mllm.mm_projector_type,
            "mm_hidden_size": vision.hidden_size,
            "mm_vision_select_layer": config.mllm.mm_vision_select_layer,
            "im_patch_id": config.mllm.im_patch_id,
        },
        "edit_head/config.json": FIXED["edit_head"]
        | to_fields(config.edit_head)
        | {"architectures": ["EditHead"]},
        "model_index.json": {
            "_diffusers_version": _DIFFUSERS_VERSION,
            "_class_name": "MGIEPipeline",
            "edit_head": ["mgie_jax", "EditHead"],
            "mllm": ["transformers", "LlamaForCausalLM"],
            "scheduler": ["diffusers", scheduler],
            "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "vision_tower": ["transformers", "CLIPVisionModel"],
            "mgie": {"prompt": to_fields(config.prompt), "sampling": to_fields(config.sampling)},
        },
    }  # fmt: skip


def _im_patch_id(path: AnyPath) -> int:
    """From the tokenizer, for an mllm/config.json that another program wrote."""
    file = path / "tokenizer" / "tokenizer.json"
    added = read_json(file).get("added_tokens", [])
    tokens = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    ids = [token.get("id") for token in tokens if token.get("content") == IM_PATCH]
    if not ids:
        raise ModelDirError(f"{file} lacks the token {IM_PATCH}; add it to the tokenizer")
    return ids[0]


def llama_fields(fields: dict, where: AnyPath) -> dict:
    """`fields` as transformers 4 names them, from either version."""
    rope = fields.get("rope_parameters")  # transformers 5
    if rope:
        if not isinstance(rope, dict):
            raise ModelDirError(f"{where}: rope_parameters: expected an object, found {rope!r}")
        if rope.get("rope_type", "default") != "default":
            raise ModelDirError(f"{where}: rope_type {rope['rope_type']!r} is not supported, only 'default'")
        fields = fields | {"rope_theta": rope.get("rope_theta", 10000.0)}
    fields = {"num_key_value_heads": fields.get("num_attention_heads")} | fields
    llm = from_fields(LlamaConfig, fields, str(where))
    if fields.get("head_dim") not in (None, llm.head_dim):
        raise ModelDirError(f"{where}: head_dim is {fields['head_dim']}, supported is {llm.head_dim}")
    # A checkpoint with tied embeddings gives both of ours the same values.
    return fields | {"tie_word_embeddings": False}


def load_config(path: str | AnyPath) -> MGIEConfig:
    """The sizes and settings of a model directory; no weights are read.

    Raises:
      ModelDirError: a file is missing, no JSON, lacks a size, or is of a network this project has not got.
    """
    path = to_path(path)
    if not path.is_dir():
        raise ModelDirError(f"{path} is not a folder; give the folder of a model directory")
    if not (path / "model_index.json").is_file():
        raise ModelDirError(f"{path} is not a model directory: it has no model_index.json")

    def part(name: str, cls: type, nested: str | None = None):
        file = path / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
        fields = read_json(file)
        # A whole CLIP's config.json holds the tower's under vision_config.
        fields = fields[nested] if isinstance(fields.get(nested), dict) else fields
        check_fixed(name, fields, str(file))
        return from_fields(cls, llama_fields(fields, file) if name == "mllm" else fields, str(file)), fields

    index = path / "model_index.json"
    mgie = read_json(index).get("mgie", {})
    if not isinstance(mgie, dict):
        raise ModelDirError(f"{index}: mgie: expected an object, found {mgie!r}")
    llm, fields = part("mllm", LlamaConfig)
    joint = {"mm_projector_type": "linear"} | fields  # LLaVA v1 has no name for it
    if "im_patch_id" not in joint:
        joint["im_patch_id"] = _im_patch_id(path)
    joint |= {
        "vision": to_fields(part("vision_tower", CLIPVisionConfig, "vision_config")[0]),
        "llm": to_fields(llm),
    }
    try:
        return MGIEConfig(
            mllm=from_fields(MLLMConfig, joint, str(path / "mllm" / "config.json")),
            edit_head=part("edit_head", EditHeadConfig)[0],
            unet=part("unet", UNetConfig)[0],
            vae=part("vae", VAEConfig)[0],
            schedule=part("scheduler", ScheduleConfig)[0],
            prompt=from_fields(PromptConfig, mgie.get("prompt", {}), f"{index}: prompt"),
            sampling=from_fields(SamplingConfig, mgie.get("sampling", {}), f"{index}: sampling"),
        )
    except ModelDirError:
        raise
    except (ValueError, ArithmeticError) as error:
        raise ModelDirError(f"{path}: the parts do not fit together: {error}") from error
