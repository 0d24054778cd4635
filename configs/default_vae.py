"""The bundled model's autoencoder: 128 px photos to 32 x 32 x 8 latents.

mgie train --config configs/default_vae.py --workdir out/vae --config.photos=photos
mgie train --config configs/default_vae.py:decoder --workdir out/decoder --config.photos=photos --config.init=MODEL
"""

import ml_collections

from mgie_jax.train.config import default_config


def get_config(run: str = "whole") -> ml_collections.ConfigDict:
    """`run`: "whole", from random weights, well under an hour on two CPU cores; or "decoder", which makes the decoder
    of a model that already edits a little more exact: the latents, and all that was trained on them, stay."""
    if run not in ("whole", "decoder"):
        raise ValueError(f"configs/default_vae.py:{run}: choose whole or decoder")
    decoder = run == "decoder"
    c = default_config()
    c.stage = "vae"
    c.model = "default"
    c.mix = (0.7, 0.18, 0.12)
    c.seed = 41 if decoder else 0
    c.trainable = ("vae/decoder/", "vae/post_quant_conv/") if decoder else ()
    c.steps = 3000 if decoder else 4300
    c.batch_size = 8
    c.example_size = 128
    c.image_size = 64  # crops: fully convolutional, it is used at 128 px
    c.max_zoom = 2.5
    c.color_jitter = 0.6 if decoder else 0.5
    c.lpips_weight = 0.05 if decoder else 0.1
    c.kl_weight = 1e-6
    c.learning_rate = {"default": 6e-4 if decoder else 1e-3}
    c.final_lr_fraction = 0.02
    c.b2 = 0.99
    c.ema_decay = 0.995
    c.log_every = 25
    c.checkpoint_every = 500
    c.export_dtype = "float16"
    return c
