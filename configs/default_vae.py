"""The bundled model's autoencoder: 128 px photos to 32 x 32 x 8 latents."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Trains in well under an hour on two CPU cores."""
    c = ml_collections.ConfigDict()
    c.model = "default"
    c.stage = "vae"
    c.init = ""  # a model directory to go on from; empty for a fresh model
    c.photos = ""  # a folder made by `mgie data photos`
    c.cutouts = ""
    c.mix = (0.7, 0.18, 0.12)
    c.example_size = 128
    c.seed = 0
    c.steps = 4300
    c.batch_size = 8
    c.crop = 64  # fully convolutional: trained on crops, used at 128 px
    c.max_zoom = 2.5
    c.color_jitter = 0.5
    c.lpips_weight = 0.1
    c.kl_weight = 1e-6
    c.learning_rate = {"default": 1e-3}
    c.final_lr_fraction = 0.02
    c.warmup = 0.03
    c.b2 = 0.99
    c.weight_decay = 0.0
    c.clip_norm = 1.0
    c.ema_decay = 0.995
    c.log_every = 25
    c.checkpoint_every = 500
    c.keep_checkpoints = 2
    c.prefetch = 4
    c.export_dtype = "float16"
    return c
