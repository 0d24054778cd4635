"""The bundled model's joint training of MLLM, edit head and UNet, L_ins + 0.5 L_edit.

    mgie train --config configs/default.py:64 --workdir out/joint64 --config.init=out/mllm/model --config.photos=photos
    mgie train --config configs/default.py:128 --workdir out/joint128 --config.init=out/joint64/model ...
"""

import ml_collections

from mgie_jax.train.config import default_config

# Edits whose squared error is small teach slowly beside those that change every pixel: they are shown more often.
WEIGHTS = {
    "brighter": 2.0, "darker": 2.0, "contrast_up": 1.5, "saturate": 2.0, "mute": 2.0, "warmer": 2.5, "cooler": 2.5,
    "red_tint": 0.7, "green_tint": 0.7, "blue_tint": 0.7, "purple_tint": 0.7, "blur": 2.0, "sharpen": 1.5,
    "pixelate": 1.5, "posterize": 1.5, "cinematic": 1.5, "invert": 0.7, "sketch": 0.7,
}  # fmt: skip


def get_config(image_size: str = "64") -> ml_collections.ConfigDict:
    """Most of the training at 64 px, where a step is cheap, and a last part at the 128 px the model is used at.

    At 64 px the MLLM, which has learned to write by then, rests; at 128 px it trains along.
    """
    last = image_size == "128"
    c = default_config()
    c.stage = "joint"
    c.model = "default"
    c.mix = (0.84, 0.14, 0.02) if last else (0.87, 0.13, 0.0)  # global, photo-dependent and local edits
    c.weights = WEIGHTS
    c.seed = 22 if last else 21
    c.steps = 450 if last else 1200
    c.batch_size = 16 if last else 32
    c.example_size = 128  # what the vision tower is shown
    c.image_size = int(image_size)  # what the UNet is trained at
    c.max_tokens = 168
    c.timestep_power = 2.5
    c.whiten = not last  # see train/whiten.py
    c.trainable = ("mllm/", "edit_head/", "unet/") if last else ("edit_head/", "unet/")
    c.learning_rate = {"mllm": 2e-4, "default": 5e-4 if last else 1e-3}
    c.final_lr_fraction = 0.02 if last else 0.15
    c.b2 = 0.99
    c.ema_decay = 0.99
    c.export_dtype = "float16"
    return c
