"""config.json <-> frozen dataclasses: a field copy, and a check that a file asks for nothing we do not do."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from mgie_jax.weights.tensors import ModelDirError

C = TypeVar("C")

_LARGEST = 2**31  # a damaged size must not become an endless network, nor a number that nothing can hold
_MOST_LAYERS = 1000

# What the networks are built with and the dataclasses have no field for. Written into every config.json, and
# a file that says otherwise is of another network. A field that a file leaves out has the value given here.
FIXED: dict[str, dict[str, Any]] = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "addition_embed_type": None,
        "center_input_sample": False,
        "class_embed_type": None,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "encoder_hid_dim": None,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "num_attention_heads": None,
        "only_cross_attention": False,
        "resnet_time_scale_shift": "default",
        "time_embedding_type": "positional",
        "transformer_layers_per_block": 1,
        "use_linear_projection": False,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "latents_mean": None,
        "latents_std": None,
        "mid_block_add_attention": True,
        "shift_factor": None,
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    },
    "scheduler": {"rescale_betas_zero_snr": False, "trained_betas": None},
    "vision_tower": {"model_type": "clip_vision_model"},
    "mllm": {"attention_bias": False, "hidden_act": "silu", "mlp_bias": False, "rope_scaling": None},
    "edit_head": {"model_type": "mgie_edit_head"},
    "t5": {"model_type": "t5", "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0, "eos_token_id": 1},
}


def to_fields(config: Any) -> dict[str, Any]:
    """The fields of a dataclass, nested ones as objects, as `json` writes them."""
    return dataclasses.asdict(config)


def check_fixed(part: str, fields: Mapping[str, Any], where: str) -> None:
    """
    Raises:
      ModelDirError: `fields`, read from the file `where`, ask for a network this project does not have.
    """
    wrong = [
        f"{name} is {fields[name]!r}, supported is {value!r}"
        for name, value in FIXED[part].items()
        if name in fields and fields[name] != value
    ]
    if wrong:
        raise ModelDirError(f"{where} describes another network: {'; '.join(wrong)}")


def from_fields(cls: type[C], fields: Any, where: str) -> C:
    """A dataclass from the fields of a file; what the class does not know is left aside.

    Raises:
      ModelDirError: a field without default is missing, has another type, or the class refuses its value.
    """
    if not isinstance(fields, Mapping):
        raise ModelDirError(f"{where}: expected an object, found {fields!r}")
    hints = typing.get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cls):
        if field.name in fields:
            value = _typed(fields[field.name], hints[field.name], f"{where}: {field.name}")
            if "layers" in field.name and isinstance(value, int) and value > _MOST_LAYERS:
                raise ModelDirError(f"{where}: {field.name} is {value}, at most {_MOST_LAYERS} are supported")
            values[field.name] = value
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ModelDirError(f"{where} lacks {field.name!r}; it must hold every size of the network")
    try:
        return cls(**values)
    except ModelDirError:
        raise
    except (ValueError, ArithmeticError) as error:
        raise ModelDirError(f"{where}: {error}") from error


def _typed(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _typed(value, next(a for a in arguments if a is not type(None)), where)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_fields(hint, value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        variadic = len(arguments) == 2 and arguments[1] is Ellipsis
        if variadic or len(arguments) == len(value):
            hints = [arguments[0]] * len(value) if variadic else arguments
            return tuple(_typed(item, item_hint, where) for item, item_hint in zip(value, hints, strict=True))
    if origin is typing.Literal and value in arguments:
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) > _LARGEST:
        raise ModelDirError(f"{where}: {str(value)[:20]} is beyond any network")
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    expected = hint.__name__ if isinstance(hint, type) else str(hint)
    raise ModelDirError(f"{where}: expected {expected}, found {value!r}")
