"""Training the autoencoder, whole or its decoder alone: L1 + LPIPS + KL, on random crops of photographs."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8
from PIL import Image

from mgie_jax.data.pipeline import HostBatch, Rows
from mgie_jax.models.vae import AutoencoderKL, VAEConfig
from mgie_jax.train.loop import Task
from mgie_jax.train.perceptual import load_lpips
from mgie_jax.train.state import merge_params, split_params
from mgie_jax.train.step import SplitLoss


def make_vae_task(
    vae: VAEConfig,
    photos: Sequence[UInt8[np.ndarray, "h w 3"]],
    config: ml_collections.ConfigDict,
    params: PyTree,
    trainable: Sequence[str] = ("vae/",),
) -> Task:
    """The task of training what `trainable` matches of `vae`, whose parameters are `params`, on `photos`.

    With ("vae/decoder/", "vae/post_quant_conv/") the latents stay what they are, and so does what a UNet makes of them.

    Raises:
        ValueError: a pattern matches no parameter.
    """
    model = AutoencoderKL(vae)
    lpips = load_lpips() if config.lpips_weight else None

    def draw(key: Array, batch: UInt8[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        (rows, height, width, _), f = batch.shape, vae.downsampling
        return jax.random.normal(key, (rows, height // f, width // f, vae.latent_channels))

    def value(
        trainable: PyTree, frozen: PyTree, batch: UInt8[Array, "b h w 3"], noise: Float[Array, "b h2 w2 c"], count: int
    ) -> tuple[Array, dict]:
        params, pixels = {"params": merge_params(trainable, frozen)["vae"]}, batch.astype(jnp.float32) / 127.5 - 1.0
        posterior = model.apply(params, pixels, method="encode")
        restored = model.apply(params, posterior.sample(noise), method="decode")

        def mean(per_row: Float[Array, " b"]) -> Float[Array, ""]:
            return per_row.sum() / count

        l1 = mean(jnp.abs(restored - pixels).mean((1, 2, 3)))
        kl = mean(posterior.kl()) / np.prod(pixels.shape[1:])
        perceptual = mean(lpips(restored, pixels)) if lpips else 0.0
        total = l1 + config.lpips_weight * perceptual + config.kl_weight * kl
        mse = ((jnp.clip(restored, -1, 1) - pixels) ** 2).mean((1, 2, 3))
        psnr = mean(10 * jnp.log10(4.0 / jnp.maximum(mse, 1e-8)))
        return total, {"loss": total, "L_1": l1, "L_lpips": perceptual, "kl": kl, "psnr": psnr}

    loss = SplitLoss(draw, count=len, value=value)
    crops = CropBatches(photos, config.seed, config.batch_size, config.image_size, config.max_zoom, config.color_jitter)
    trained, frozen = split_params({"vae": params}, trainable)
    return Task(trained, frozen, loss, crops)


def normalise_latents(vae: VAEConfig, params: PyTree, photos: Sequence[UInt8[np.ndarray, "h w 3"]]) -> PyTree:
    """Parameters of the same autoencoder whose latents have zero mean and unit variance, channel by channel.

    An affine map of the latents is folded into the 1x1 convolutions on either side, so reconstructions stay the
    same, and no channel weighs more than another in L_edit. (Latent diffusion, appendix G, rescales all channels by
    one factor; `scaling_factor` is then 1.)

    Args:
        photos: of one size, to measure the latents on.
    """
    encode = jax.jit(lambda x: AutoencoderKL(vae).apply({"params": params}, x, method="encode").mode())
    latents = np.concatenate([encode(jnp.asarray(photo, jnp.float32)[None] / 127.5 - 1.0) for photo in photos])
    mean, std = latents.mean((0, 1, 2)), latents.std((0, 1, 2))
    quant, post = params["quant_conv"], params["post_quant_conv"]
    # The second half of the channels is the log-variance: dividing latents by std takes 2 log(std) off it.
    gain = np.concatenate([1.0 / std, np.ones_like(std)])
    shift = np.concatenate([-mean / std, -2.0 * np.log(std)])
    kernel = np.asarray(post["kernel"])
    return {
        **params,
        "quant_conv": {"kernel": quant["kernel"] * gain, "bias": quant["bias"] * gain + shift},
        "post_quant_conv": {
            "kernel": kernel * std[:, None],
            "bias": post["bias"] + mean @ kernel[0, 0],
        },
    }


@dataclass(frozen=True, eq=False)
class CropBatches:
    """A `BatchFn` of square crops: regions of random size and place, resized to `size` px, sometimes mirrored.

    Colours are jittered, because edits take pictures to colours that photos seldom have.

    Attributes:
        batch_size: of the whole batch, over all hosts.
        max_zoom: the largest region, against `size`.
        color_jitter: how often colours are jittered.
    """

    photos: Sequence[UInt8[np.ndarray, "h w 3"]]
    seed: int
    batch_size: int
    size: int
    max_zoom: float
    color_jitter: float

    def __call__(self, number: int, rows: Rows) -> HostBatch:
        """Some rows of batch `number`: uint8 (rows, size, size, 3)."""
        places = number * self.batch_size + np.arange(self.batch_size)[rows]
        crops = np.stack([self._crop(np.random.default_rng([self.seed, place])) for place in places])
        return HostBatch(crops, tuple(f"crop-{self.seed}-{place}" for place in places), ())

    def _crop(self, rng: np.random.Generator) -> UInt8[np.ndarray, "s s 3"]:
        photo = self.photos[rng.integers(len(self.photos))]
        height, width = photo.shape[:2]
        side = int(min(height, width, self.size * rng.uniform(1.0, self.max_zoom)))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        region = Image.fromarray(photo[top : top + side, left : left + side])
        pixels = np.asarray(region.resize((self.size, self.size), Image.Resampling.BICUBIC))
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        if rng.random() < self.color_jitter:
            x = pixels.astype(np.float32) / 255.0
            grey = x.mean(-1, keepdims=True)
            x = grey + (x - grey) * rng.uniform(0.0, 1.8)
            x = (x - 0.5) * rng.uniform(0.5, 1.6) + 0.5 + rng.uniform(-0.25, 0.25)
            x = x * rng.uniform(0.6, 1.25, 3)
            x = 1.0 - x if rng.random() < 0.1 else x
            pixels = (np.clip(x, 0, 1) * 255).astype(np.uint8)
        return pixels
