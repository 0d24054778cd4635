"""The bundled model's joint training of MLLM, edit head and UNet, L_ins + 0.5 L_edit.

    mgie train --config configs/default.py:64 --workdir out/joint64 --config.init=out/mllm/model --config.photos=photos
    mgie train --config configs/default.py:128 --workdir out/joint128 --config.init=out/joint64/model ...
"""

import ml_collections


def get_config(image_size: str = "64") -> ml_collections.ConfigDict:
    """Most of the training at 64 px, where a step is cheap, and a last part at the 128 px the model is used at.

    A step at 64 px takes about 2 seconds on two CPU cores; 1500 are too few for the UNet (see the model card).
    """
    last = image_size == "128"
    c = ml_collections.ConfigDict()
    c.stage = "joint"
    c.init = ""  # the model directory of the stage before
    c.photos = ""  # a folder made by `mgie data photos`
    c.cutouts = ""  # a folder of captioned cut-outs; without, no local edits are trained
    c.mix = (0.72, 0.18, 0.10)  # global, photo-dependent and local edits
    c.seed = 3 if last else 2
    c.steps = 500 if last else 1500
    c.batch_size = 16
    c.example_size = 128  # what the vision tower is shown
    c.image_size = int(image_size)  # what the UNet is trained at
    c.max_tokens = 168
    c.noise_draws = 2
    c.timestep_power = 2.0
    # All but the autoencoder: so small an MLLM has still to learn what LLaVA knows. The paper's set is
    # ("mllm/model/embed_tokens/", "mllm/lm_head/", "edit_head/", "unet/").
    c.trainable = ("mllm/", "edit_head/", "unet/")
    c.learning_rate = {"mllm": 1e-4 if last else 4e-4, "default": 2e-4 if last else 1e-3}
    c.final_lr_fraction = 0.02 if last else 0.1
    c.warmup = 0.03
    c.b2 = 0.99
    c.weight_decay = 0.0
    c.clip_norm = 1.0
    c.ema_decay = 0.99 if last else 0.998
    c.log_every = 20
    c.checkpoint_every = 250
    c.keep_checkpoints = 2
    c.prefetch = 4
    c.export_dtype = "float16"
    return c
