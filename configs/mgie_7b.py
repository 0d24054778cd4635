"""MGIE at full size as the paper trains it (arXiv 2309.17102, section 4.1); `mgie_7b.py:released`: as its code does.

mgie convert from-official ... mgie_7b_init
mgie data build ipr2pr clip-filtered-dataset datasets
mgie train --config configs/mgie_7b.py --workdir out --config.init=mgie_7b_init --config.data=datasets/ipr2pr
"""

import ml_collections

from mgie_jax.train.config import default_config

EXAMPLES = 1_000_000  # about what IPr2Pr has; a run on other data wants --config.steps
EPOCHS = 40


def get_config(recipe: str = "paper") -> ml_collections.ConfigDict:
    """`recipe` is "paper" or "released"."""
    c = default_config()
    c.stage = "joint"
    c.mode = "E2E"
    c.model = "mgie_7b"
    if recipe == "paper":
        c.batch_size = 128
        c.learning_rate = {"unet": 1e-4, "default": 5e-4}  # the edit head is on the MLLM's side
    elif recipe == "released":
        c.batch_size = 32  # 8 devices, 4 each
        c.learning_rate = {"default": 5e-4}
    else:
        raise ValueError(f"configs/mgie_7b.py:{recipe}: the recipe is paper or released")
    c.steps = EPOCHS * EXAMPLES // c.batch_size
    c.warmup = 0.03
    c.final_lr_fraction = 0.0
    c.b2 = 0.999
    c.weight_decay = 0.0
    c.clip_norm = 1.0
    c.image_size = 256
    c.max_tokens = 512
    c.workers = 8
    c.remat = "blocks"
    c.compute_dtype = "bfloat16"
    c.frozen_dtype = "bfloat16"
    c.export_dtype = "bfloat16"
    c.grid_every = 2000
    c.checkpoint_every = 2000
    c.keep_checkpoints = 10
    return c
