"""What a UNet computes again at every denoising step although it is the same each time, or known before the first.

Kept in two collections of variables that `UNet2DConditionModel` looks into: `AHEAD`, the same for all steps (keys and
values of the guidance, the photo's share of the first convolution), and `TIME`, a row for each step (what the time adds
in every residual block).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, PyTree, Real

from mgie_jax.models.blocks import TIME
from mgie_jax.models.convolution import conv3x3
from mgie_jax.models.unet import AHEAD, PHOTO, TimestepEmbedding, UNetConfig, timestep_embedding
from mgie_jax.types import HostOrDevice


def guidance_and_photo(
    config: UNetConfig,
    params: PyTree,
    contexts: Float[Array, "b n q d"],
    photos: Float[Array, "b n h w c"],
    dtype: Dtype = jnp.float32,
) -> dict[str, PyTree]:
    """The collection `AHEAD` of `n` branches for each of b rows.

    With it the UNet takes the noisy latents alone, one for each row, shares the work on them among the branches as far
    as they do not differ, and returns all b * n, each row's side by side.

    Args:
        params: the UNet's.
        photos: the last channels of its input; the noisy latents are the others.
    """
    b, n, *sides, channels = photos.shape
    context = contexts.reshape(b * n, *contexts.shape[2:]).astype(dtype)

    def keys_and_values(block: Mapping) -> dict[str, Array]:
        return {name: _dense(block[name], context, dtype) for name in ("to_k", "to_v")}

    tree = _found(params, "attn2", keys_and_values)
    latents = jnp.zeros((b * n, *sides, config.in_channels - channels), dtype)
    inputs = jnp.concatenate([latents, photos.reshape(b * n, *sides, channels).astype(dtype)], axis=-1)
    weights = params["conv_in"] | {"bias": jnp.zeros_like(params["conv_in"]["bias"])}
    y = conv3x3(config.block_out_channels[0], dtype).apply({"params": weights}, inputs)
    return {AHEAD: tree | {PHOTO: y.reshape(b, n, *y.shape[1:])}}


def times(
    config: UNetConfig, params: PyTree, timesteps: Real[HostOrDevice, " steps"], dtype: Dtype = jnp.float32
) -> dict[str, PyTree]:
    """The collection `TIME`, every array with the steps in front: the UNet takes one of them."""
    finest = config.block_out_channels[0]
    embedding = TimestepEmbedding(4 * finest, dtype)
    sinusoids = timestep_embedding(jnp.asarray(timesteps), finest).astype(dtype)
    temb = nn.silu(embedding.apply({"params": params["time_embedding"]}, sinusoids))
    return {TIME: _found(params, "time_emb_proj", lambda weights: _dense(weights, temb, dtype))}


def _dense(weights: Mapping, x: Array, dtype: Dtype) -> Array:
    layer = nn.Dense(weights["kernel"].shape[-1], use_bias="bias" in weights, dtype=dtype)
    return layer.apply({"params": weights}, x)


def _found(tree: Mapping, name: str, made: Callable[[Mapping], Any]) -> dict:
    """The branches of a tree that end in `name`, with `made` of what is there in its place."""
    kept = {}
    for key, inside in tree.items():
        if key == name:
            kept[key] = made(inside)
        elif isinstance(inside, Mapping) and (deeper := _found(inside, name, made)):
            kept[key] = deeper
    return kept
