"""The bundled model's joint training of MLLM, edit head and UNet, L_ins + 0.5 L_edit: eleven runs, one from the other.

mgie train --config configs/default.py:64 --workdir out/64 --config.init=out/mllm/model --config.photos=photos
mgie train --config configs/default.py:128 --workdir out/128 --config.init=out/64/model --config.photos=photos
... and so with 64-2, 128-2, 128-3, 128-4, 128-5, 128-6, from the mean of the last two with 128-7 and 128-8 and, from
the mean of these with a better decoder (configs/default_vae.py:decoder), 128-9: see launch/default_model.sh.
"""

import ml_collections

from mgie_jax.train.config import default_config

# Edits whose squared error is small teach slowly beside those that change every pixel: they are shown more often.
WEIGHTS = {
    "brighter": 2.0, "darker": 2.0, "contrast_up": 1.5, "saturate": 2.0, "mute": 2.0, "warmer": 2.5, "cooler": 2.5,
    "red_tint": 0.7, "green_tint": 0.7, "blue_tint": 0.7, "purple_tint": 0.7, "blur": 2.0, "sharpen": 1.5,
    "pixelate": 1.5, "posterize": 1.5, "cinematic": 1.5, "invert": 0.7, "sketch": 0.7,
}  # fmt: skip
# What was left to learn after four runs.
LAST_WEIGHTS = {
    "brighter": 1.0, "darker": 1.0, "contrast_up": 3.0, "saturate": 3.0, "mute": 1.5, "black_and_white": 2.0,
    "red_tint": 1.2, "blue_tint": 0.7, "purple_tint": 0.7, "blur": 2.5, "sharpen": 2.0, "invert": 2.5,
    "pixelate": 2.5, "posterize": 3.0, "solarize": 1.5, "night": 0.6, "vignette": 0.7, "sketch": 0.7,
}  # fmt: skip
# ... and after five.
REST_WEIGHTS = LAST_WEIGHTS | {
    "contrast_up": 4.0, "saturate": 4.0, "black_and_white": 3.0, "blur": 3.0, "pixelate": 4.5, "posterize": 4.5,
    "red_tint": 1.0, "sharpen": 1.5, "invert": 2.0, "night": 0.5,
}  # fmt: skip
# ... and after six; what "posterize" asks for had been changed.
FINAL_WEIGHTS = REST_WEIGHTS | {
    "saturate": 5.5, "pixelate": 6.0, "invert": 4.5, "posterize": 5.0, "contrast_up": 3.0, "black_and_white": 2.5,
}  # fmt: skip
# ... and after seven, in which what "invert" had gained others lost: their words were read as its.
EVEN_WEIGHTS = REST_WEIGHTS | {
    "saturate": 6.0, "pixelate": 4.5, "invert": 2.0, "posterize": 3.0, "contrast_down": 3.5, "cooler": 2.5,
    "warmer": 1.5, "mute": 2.5, "sharpen": 1.0,
}  # fmt: skip
# ... and after eight: two kinds were a little short of half the distance.
LAST_TWO_WEIGHTS = EVEN_WEIGHTS | {"saturate": 7.5, "pixelate": 7.0, "posterize": 3.5}
# ... and after nine, one.
LAST_ONE_WEIGHTS = EVEN_WEIGHTS | {"saturate": 12.0, "mute": 3.5, "blur": 3.5, "black_and_white": 3.5}
# ... and after ten, with nothing short of half the distance.
CALM_WEIGHTS = EVEN_WEIGHTS | {
    "saturate": 7.0, "mute": 4.0, "sharpen": 3.0, "invert": 3.5, "blur": 3.5, "black_and_white": 3.5, "night": 1.5,
}  # fmt: skip

# Shares of global, photo-dependent and local edits; learning rates of MLLM and the rest.
RUNS = {
    # The UNet learns to be guided, and as early as it can: the MLLM, which can write by now, stands still.
    "64": dict(seed=21, steps=1200, mix=(0.87, 0.13, 0.0), rates=(0.0, 1e-3), timestep_power=2.5, whiten=True),
    "128": dict(seed=22, steps=450, mix=(0.84, 0.14, 0.02), rates=(2e-4, 5e-4), timestep_power=2.5),
    # Misread words came to be what bounded the pictures: the MLLM trains along, cheaply at 64 px.
    "64-2": dict(seed=31, steps=560, mix=(0.85, 0.13, 0.02), rates=(4e-4, 8e-4), timestep_power=1.5),
    "128-2": dict(seed=32, steps=560, mix=(0.84, 0.14, 0.02), rates=(2e-4, 5e-4), timestep_power=1.5),
    "128-3": dict(seed=33, steps=260, mix=(0.84, 0.14, 0.02), rates=(2e-4, 4e-4), timestep_power=1.3),
    "128-4": dict(seed=34, steps=760, mix=(0.84, 0.14, 0.02), rates=(2e-4, 5e-4), timestep_power=1.3),
    "128-5": dict(seed=35, steps=700, mix=(0.85, 0.13, 0.02), rates=(3e-4, 5e-4), timestep_power=1.3),
    "128-6": dict(seed=36, steps=160, mix=(0.87, 0.12, 0.01), rates=(3e-4, 4e-4), timestep_power=1.3),
    "128-7": dict(seed=37, steps=500, mix=(0.86, 0.13, 0.01), rates=(3e-4, 5e-4), timestep_power=1.3),
    # Two steps of denoising, of which the first decides, had turned out best.
    "128-8": dict(seed=38, steps=170, mix=(0.88, 0.12, 0.0), rates=(2e-4, 4e-4), timestep_power=2.5),
    "128-9": dict(seed=39, steps=420, mix=(0.86, 0.13, 0.01), rates=(2e-4, 5e-4), timestep_power=2.5),
}
BY_KIND = {
    "128-3": LAST_WEIGHTS, "128-4": REST_WEIGHTS, "128-5": FINAL_WEIGHTS, "128-6": EVEN_WEIGHTS,
    "128-7": LAST_TWO_WEIGHTS, "128-8": LAST_ONE_WEIGHTS, "128-9": CALM_WEIGHTS,
}  # fmt: skip


def get_config(run: str = "64") -> ml_collections.ConfigDict:
    """`run` is a row of `RUNS`; its number is the size in pixels. Most steps are at 64 px, where they are cheap."""
    row = RUNS[run]
    small = run.startswith("64")
    mllm, rest = row["rates"]
    c = default_config()
    c.stage = "joint"
    c.model = "default"
    c.mix = row["mix"]
    c.weights = BY_KIND.get(run, WEIGHTS)
    c.seed = row["seed"]
    c.steps = row["steps"]
    c.batch_size = 32 if small else 16
    c.example_size = 128  # what the vision tower is shown
    c.image_size = 64 if small else 128  # what the UNet is trained at
    c.max_tokens = 168
    c.timestep_power = row["timestep_power"]
    c.whiten = row.get("whiten", False)  # see train/whiten.py
    c.trainable = ("mllm/", "edit_head/", "unet/") if mllm else ("edit_head/", "unet/")
    c.learning_rate = {"mllm": mllm, "default": rest}
    c.final_lr_fraction = 0.15 if small else 0.02
    c.b2 = 0.99
    c.ema_decay = 0.99
    c.export_dtype = "float16"
    return c
