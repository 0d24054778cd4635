"""The bundled model's last stage: MLLM, edit head and UNet train jointly, L_ins + 0.5 L_edit.

    mgie train --config configs/default.py --workdir out/joint --config.init=out/mllm/model --config.photos=photos
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """About an hour on two CPU cores."""
    c = ml_collections.ConfigDict()
    c.stage = "joint"
    c.init = ""  # the model directory of the stage before
    c.photos = ""  # a folder made by `mgie data photos`
    c.cutouts = ""  # a folder of captioned cut-outs; without, no local edits are trained
    c.mix = (0.72, 0.18, 0.10)  # global, photo-dependent and local edits
    c.seed = 2
    c.steps = 4000
    c.batch_size = 16
    c.example_size = 128  # what the vision tower is shown
    c.image_size = 64  # what the UNet is trained at, half of what it is used at, as the paper does
    c.max_tokens = 152
    c.trainable = ("mllm/model/embed_tokens/", "mllm/lm_head/", "edit_head/", "unet/")
    c.learning_rate = {"mllm": 1e-4, "default": 8e-4}
    c.final_lr_fraction = 0.02
    c.warmup = 0.03
    c.b2 = 0.99
    c.weight_decay = 0.0
    c.clip_norm = 1.0
    c.ema_decay = 0.999
    c.log_every = 20
    c.checkpoint_every = 250
    c.keep_checkpoints = 2
    c.prefetch = 4
    c.export_dtype = "float16"
    return c
