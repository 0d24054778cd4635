"""Single-file checkpoints of latent diffusion (Stable Diffusion, InstructPix2Pix) -> diffusers' `unet/` and `vae/`.

The layout of the networks is read off the keys and shapes (`ldm_keys`). Checked against diffusers' own conversion in
the tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgie_jax.diffusion.schedule import ScheduleConfig, scaled_linear_betas
from mgie_jax.models.presets import SamplingConfig
from mgie_jax.models.unet import UNet2DConditionModel, UNetConfig
from mgie_jax.models.vae import AutoencoderKL, VAEConfig
from mgie_jax.paths import AnyPath, make_folder
from mgie_jax.weights import ldm_keys
from mgie_jax.weights.atomic import new_folder, write_text
from mgie_jax.weights.model_config import diffusion_files
from mgie_jax.weights.rules import KeyMismatch, match
from mgie_jax.weights.tables import PLAIN
from mgie_jax.weights.tensor import ModelDirError, Slices, Tensor
from mgie_jax.weights.tensors import write_tensors

UNET, EMA, VAE = "model.diffusion_model.", "model_ema.", "first_stage_model."


@dataclass(frozen=True)
class LatentDiffusion:
    """The two networks of a checkpoint, under diffusers' keys. `ema`: the UNet is the averaged one."""

    unet_config: UNetConfig
    vae_config: VAEConfig
    schedule: ScheduleConfig
    unet: dict[str, Tensor]
    vae: dict[str, Tensor]
    ema: bool


def convert(
    tensors: Mapping[str, Tensor], where: str, ema: bool | None = None, in_channels: int | None = None
) -> LatentDiffusion:
    """Both networks of a checkpoint; nothing is read but shapes (and the betas, where the file has them).

    Args:
      tensors: the file's, as `tensors.open_tensors` gives them.
      where: the file's name, for errors.
      ema: take the averaged UNet (True), the last one of training (False), or the averaged one where there is one
        (None), as the original programs sample.
      in_channels: widen the UNet's `conv_in` to as many input channels; the new ones are zero.

    Raises:
      ModelDirError: UNet or VAE is missing, has other parts than Stable Diffusion v1's, or does not fit.
    """
    networks = {prefix: _below(tensors, prefix) for prefix in (UNET, EMA, VAE)}
    for prefix, name in ((UNET, "UNet"), (VAE, "VAE")):
        if not networks[prefix]:
            raise ModelDirError(
                f"{where} holds no {name}: no key begins with {prefix}; give a whole checkpoint of latent diffusion"
            )
    if ema and not networks[EMA]:
        raise ModelDirError(f"{where} holds no averaged weights: no key begins with {EMA}; leave --ema out")
    ema = bool(networks[EMA]) if ema is None else ema
    unet = _averaged(networks[UNET], networks[EMA], where) if ema else networks[UNET]
    vae = {key: tensor for key, tensor in networks[VAE].items() if not key.startswith("loss.")}  # of its training
    try:
        unet_config, vae_config = ldm_keys.unet_config(unet), ldm_keys.vae_config(vae)
    except KeyError as error:
        raise ModelDirError(f"{where} lacks the key {error.args[0]!r}, which a checkpoint of this kind has") from None
    except (ValueError, IndexError) as error:
        raise ModelDirError(f"{where}: {error}; only networks built as Stable Diffusion v1 are supported") from error
    if in_channels is not None and in_channels < unet_config.in_channels:
        raise ModelDirError(
            f"{where}: {UNET}input_blocks.0.0.weight has {unet_config.in_channels} input channels, which cannot become "
            f"{in_channels}; ask for more, or for none"
        )
    unet_config = replace(unet_config, in_channels=in_channels or unet_config.in_channels)
    if "scale_factor" in tensors:  # kept by checkpoints that measured their latents; Stable Diffusion's is the default
        vae_config = replace(vae_config, scaling_factor=float(np.asarray(tensors["scale_factor"])))
    levels = len(vae_config.block_out_channels)
    unet = {ldm_keys.unet_key(key, unet_config.layers_per_block): (UNET + key, unet[key]) for key in unet}
    vae = {ldm_keys.vae_key(key, levels): (VAE + key, vae[key]) for key in vae}
    unet, vae = _fit(unet_config, unet, f"{where}: the UNet"), _fit(vae_config, vae, f"{where}: the VAE")
    return LatentDiffusion(unet_config, vae_config, _schedule(tensors, where), unet, vae, ema)


def write(
    path: str | AnyPath,
    model: LatentDiffusion,
    dtype: Any = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes a folder with unet/, vae/ and scheduler/, as diffusers would; it has its name once it is whole.

    Args:
      dtype: what floats are cast to; None keeps each tensor as it is.
      progress: called with the bytes written after each tensor.

    Raises:
      ModelDirError: there is something at `path` and `overwrite` is False; a number is too large for `dtype`.
    """
    sampler = SamplingConfig().sampler
    with new_folder(path, "unet/config.json", overwrite) as new:
        for part, tensors in (("unet", model.unet), ("vae", model.vae)):
            make_folder(new / part)
            write_tensors(new / part, "diffusion_pytorch_model", tensors.items(), dtype, progress=progress)
        make_folder(new / "scheduler")
        for name, fields in diffusion_files(model.unet_config, model.vae_config, model.schedule, sampler).items():
            write_text(new / name, json.dumps(fields, indent=2, sort_keys=True) + "\n")


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _averaged(unet: Mapping[str, Tensor], ema: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """`LitEma` keeps each parameter under its name without the dots."""
    flat = {key: "diffusion_model" + key.replace(".", "") for key in unet}
    lost = [f"{EMA}{name}" for name in flat.values() if name not in ema]
    if lost:
        raise ModelDirError(f"{where} lacks averaged weights: {', '.join(lost)}; convert it with --no-ema")
    return {key: ema[name] for key, name in flat.items()}


def _schedule(tensors: Mapping[str, Tensor], where: str) -> ScheduleConfig:
    """Stable Diffusion's, which the file's betas, where it has them, must be."""
    config = ScheduleConfig()
    if "betas" in tensors:
        betas, expected = np.asarray(tensors["betas"]).astype(np.float64), scaled_linear_betas(config)
        if betas.shape != expected.shape or not np.allclose(betas, expected, rtol=2e-3):  # they may be float16
            raise ModelDirError(f"{where}: betas are not Stable Diffusion's noise schedule, the only one supported")
    return config


def _fit(config: UNetConfig | VAEConfig, renamed: Mapping[str, tuple[str, Tensor]], network: str) -> dict[str, Tensor]:
    """The tensors in the network's shapes, refused under the names they have in the file."""
    fitted = {}
    for key, (_, tensor) in renamed.items():
        if ".attentions.0.to_" in key and tensor.shape[2:] == (1, 1):
            tensor = _linear(tensor)
        if key == "conv_in.weight" and isinstance(config, UNetConfig):
            tensor = _widened(tensor, config.in_channels)
        fitted[key] = tensor
    try:
        match(_template(config), fitted, network, PLAIN)
    except KeyMismatch as error:
        named = KeyMismatch(
            network,
            error.missing,
            [renamed[key][0] for key in error.unexpected],
            {renamed[key][0]: shapes for key, shapes in error.misshaped.items()},
            {renamed[key][0]: dtype for key, dtype in error.mistyped.items()},
        )
        lines = [f"{network} is not whole, or not built as Stable Diffusion v1's, the only kind supported"]
        raise ModelDirError("\n".join(lines + str(named).splitlines()[1:])) from error
    return fitted


def _linear(tensor: Tensor) -> Tensor:
    """A 1x1 convolution as the linear layer that it is."""
    return replace(tensor, shape=tensor.shape[:2], read=lambda index: np.array(tensor[index][..., 0, 0], order="C"))


def _widened(tensor: Tensor, channels: int) -> Tensor:
    """A convolution with zeros for the input channels it had not."""
    rows, *rest = tensor.shape
    if len(rest) != 3 or rest[0] >= channels:
        return tensor

    def read(index: Slices) -> np.ndarray:
        old = tensor[index[0]]
        new = np.zeros((len(old), channels - rest[0], *rest[1:]), old.dtype)
        return np.array(np.concatenate([old, new], axis=1)[:, *index[1:]], order="C")

    return replace(tensor, shape=(rows, channels, *rest[1:]), read=read)


@lru_cache(maxsize=8)  # tracing takes seconds
def _template(config: UNetConfig | VAEConfig) -> Mapping:
    key = jax.random.key(0)
    try:
        if isinstance(config, VAEConfig):
            photo = jnp.zeros((1, config.downsampling, config.downsampling, config.in_channels))
            return jax.eval_shape(AutoencoderKL(config).init, key, photo, key)["params"]
        side = 2 ** (len(config.block_out_channels) - 1)
        latents = jnp.zeros((1, side, side, config.in_channels))
        guidance = jnp.zeros((1, 1, config.cross_attention_dim))
        return jax.eval_shape(UNet2DConditionModel(config).init, key, latents, jnp.zeros(1), guidance)["params"]
    except Exception as error:  # sizes that make no network: whatever flax then raises
        raise ModelDirError(f"the shapes describe no network: {str(error).splitlines()[:1]}") from error
