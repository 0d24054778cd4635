"""Training the autoencoder: L1 + LPIPS + KL, on random crops of photographs."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, PyTree, UInt8
from PIL import Image

from mgie_jax.models.vae import AutoencoderKL, VAEConfig
from mgie_jax.train.loop import Task
from mgie_jax.train.perceptual import load_lpips


def make_vae_task(vae: VAEConfig, photos: Sequence[UInt8[np.ndarray, "h w 3"]], config: ml_collections.ConfigDict,
                  params: PyTree | None = None) -> Task:
    """The task of training `vae` on `photos`; `params` continues from given weights."""
    model = AutoencoderKL(vae)
    if params is None:
        size = config.crop
        params = model.init(
            jax.random.key(config.seed), jnp.zeros((1, size, size, 3)), jax.random.key(0)
        )["params"]
    lpips = load_lpips() if config.lpips_weight else None

    def loss(trainable: PyTree, frozen: PyTree, batch: UInt8[Array, "b h w 3"], key: Array) -> tuple[Array, dict]:
        pixels = batch.astype(jnp.float32) / 127.5 - 1.0
        restored, posterior = model.apply({"params": trainable["vae"]}, pixels, key)
        l1 = jnp.abs(restored - pixels).mean()
        kl = posterior.kl().mean() / np.prod(pixels.shape[1:])
        perceptual = lpips(restored, pixels).mean() if lpips else 0.0
        total = l1 + config.lpips_weight * perceptual + config.kl_weight * kl
        mse = ((jnp.clip(restored, -1, 1) - pixels) ** 2).mean((1, 2, 3))
        psnr = (10 * jnp.log10(4.0 / jnp.maximum(mse, 1e-8))).mean()
        return total, {"loss": total, "L_1": l1, "L_lpips": perceptual, "kl": kl, "psnr": psnr}

    return Task({"vae": params}, {}, loss, _crops(photos, config))


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


def _crops(photos: Sequence[np.ndarray], config: ml_collections.ConfigDict) -> Callable[[int], np.ndarray]:
    """Batches of square crops: a region of random size and place, resized to `config.crop`, sometimes mirrored.

    Colours are jittered, because edits take pictures to colours that photos seldom have.
    """

    def crop(rng: np.random.Generator) -> np.ndarray:
        photo = photos[rng.integers(len(photos))]
        height, width = photo.shape[:2]
        side = int(min(height, width, config.crop * rng.uniform(1.0, config.max_zoom)))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        region = Image.fromarray(photo[top : top + side, left : left + side])
        pixels = np.asarray(region.resize((config.crop, config.crop), Image.Resampling.BICUBIC))
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        if rng.random() < config.color_jitter:
            x = pixels.astype(np.float32) / 255.0
            grey = x.mean(-1, keepdims=True)
            x = grey + (x - grey) * rng.uniform(0.0, 1.8)
            x = (x - 0.5) * rng.uniform(0.5, 1.6) + 0.5 + rng.uniform(-0.25, 0.25)
            x = x * rng.uniform(0.6, 1.25, 3)
            x = 1.0 - x if rng.random() < 0.1 else x
            pixels = (np.clip(x, 0, 1) * 255).astype(np.uint8)
        return pixels

    def batch(number: int) -> np.ndarray:
        rng = np.random.default_rng([config.seed, number])
        return np.stack([crop(rng) for _ in range(config.batch_size)])

    return batch
