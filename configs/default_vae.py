"""The bundled model's autoencoder: 128 px photos to 32 x 32 x 8 latents."""

import ml_collections

from mgie_jax.train.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """Trains in well under an hour on two CPU cores."""
    c = default_config()
    c.stage = "vae"
    c.model = "default"
    c.mix = (0.7, 0.18, 0.12)
    c.steps = 4300
    c.batch_size = 8
    c.example_size = 128
    c.image_size = 64  # crops: fully convolutional, it is used at 128 px
    c.max_zoom = 2.5
    c.color_jitter = 0.5
    c.lpips_weight = 0.1
    c.kl_weight = 1e-6
    c.learning_rate = {"default": 1e-3}
    c.final_lr_fraction = 0.02
    c.b2 = 0.99
    c.ema_decay = 0.995
    c.log_every = 25
    c.checkpoint_every = 500
    c.export_dtype = "float16"
    return c
