"""The names of latent diffusion's networks, and the layouts that their keys and shapes tell.

Names as in the original implementation (CompVis/latent-diffusion, `openaimodel.UNetModel` and
`autoencoder.AutoencoderKL`). What no shape tells is what every published checkpoint of this family has: 8 attention
heads, 32 normalization groups, the defaults of the two configurations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mgie_jax.models.unet import UNetConfig
from mgie_jax.models.vae import VAEConfig
from mgie_jax.weights.tensor import Tensor

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_VAE_RENAMES = (
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)


def _count(tensors: Mapping[str, Any], pattern: str) -> int:
    """One more than the largest number that `pattern` finds."""
    found = (re.match(pattern, key) for key in tensors)
    return max((int(m.group(1)) + 1 for m in found if m), default=0)


def unet_config(unet: Mapping[str, Tensor]) -> UNetConfig:
    """The layout, from the encoder half: each level is some residual blocks, then, but for the last, a stride.

    Raises:
      KeyError: a key is missing that every such network has.
      ValueError: the levels are not alike.
    """
    levels: list[list[tuple[int, bool]]] = [[]]
    for i in range(1, _count(unet, r"input_blocks\.(\d+)\.")):
        if f"input_blocks.{i}.0.op.weight" in unet:
            levels.append([])
        else:
            channels = unet[f"input_blocks.{i}.0.in_layers.2.weight"].shape[0]
            levels[-1].append((channels, f"input_blocks.{i}.1.norm.weight" in unet))
    if any(not level or level.count(level[0]) != len(levels[0]) or len(level) != len(levels[0]) for level in levels):
        raise ValueError("the blocks of the UNet's levels differ in number, width or attention")
    attention = [level[0][1] for level in levels]
    return UNetConfig(
        in_channels=unet["input_blocks.0.0.weight"].shape[1],
        out_channels=unet["out.2.weight"].shape[0],
        block_out_channels=tuple(level[0][0] for level in levels),
        layers_per_block=len(levels[0]),
        down_block_types=tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)),
        cross_attention_dim=unet["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
    )


def vae_config(vae: Mapping[str, Tensor]) -> VAEConfig:
    """The layout of the autoencoder. Raises KeyError where a key is missing that every such network has."""
    levels = _count(vae, r"encoder\.down\.(\d+)\.")
    if not levels:
        raise KeyError("encoder.down.0.block.0.conv1.weight")
    return VAEConfig(
        in_channels=vae["encoder.conv_in.weight"].shape[1],
        out_channels=vae["decoder.conv_out.weight"].shape[0],
        latent_channels=vae["decoder.conv_in.weight"].shape[1],
        block_out_channels=tuple(vae[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)),
        layers_per_block=_count(vae, r"encoder\.down\.0\.block\.(\d+)\."),
    )


def unet_key(key: str, layers: int) -> str:
    """diffusers' name; what has none keeps its own, and is found to be unexpected."""
    stem, _, leaf = key.rpartition(".")
    if stem in _UNET_ENDS:
        return f"{_UNET_ENDS[stem]}.{leaf}"
    if middle := re.fullmatch(r"middle_block\.([012])\.(.+)", key):
        i, rest = int(middle[1]), middle[2]
        return f"mid_block.attentions.0.{rest}" if i == 1 else f"mid_block.resnets.{i // 2}.{_resnet(rest)}"
    block = re.fullmatch(r"(in|out)put_blocks\.(\d+)\.(\d)\.(.+)", key)
    if not block:
        return key
    down, rest = block[1] == "in", block[4]
    level, layer = divmod(int(block[2]) - down, layers + 1)  # a level's last input block is its stride
    where = f"{'down' if down else 'up'}_blocks.{level}"
    if rest.startswith("op."):
        return f"{where}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if rest.startswith("conv."):
        return f"{where}.upsamplers.0.{rest}"
    return f"{where}.resnets.{layer}.{_resnet(rest)}" if block[3] == "0" else f"{where}.attentions.{layer}.{rest}"


def _resnet(rest: str) -> str:
    stem, _, leaf = rest.rpartition(".")
    return f"{_RESNET.get(stem, stem)}.{leaf}"


def vae_key(key: str, levels: int) -> str:
    """diffusers' name, in an autoencoder of so many levels."""
    for pattern, new in _VAE_RENAMES:
        key = re.sub(pattern, new, key)
    # The original counts the decoder's levels from the finest, diffusers in the order they run.
    if up := re.fullmatch(r"decoder\.up\.(\d+)\.(block|upsample)\.(.+)", key):
        part = {"block": "resnets", "upsample": "upsamplers.0"}[up[2]]
        return f"decoder.up_blocks.{levels - 1 - int(up[1])}.{part}.{up[3]}"
    return key
