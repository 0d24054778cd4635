"""The bundled model's first stage: the MLLM learns, from scratch, to write expressive instructions."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Vision tower, projector and decoder all train, on L_ins alone: there is no small LLaVA to start from."""
    c = ml_collections.ConfigDict()
    c.stage = "mllm"
    c.init = ""  # the model directory of the stage before
    c.photos = ""  # a folder made by `mgie data photos`
    c.cutouts = ""  # a folder of captioned cut-outs; without, no local edits are trained
    c.mix = (0.7, 0.18, 0.12)  # global, photo-dependent and local edits
    c.seed = 1
    c.steps = 780
    c.batch_size = 32
    c.example_size = 112
    c.max_tokens = 168
    c.trainable = ("mllm/",)
    c.learning_rate = {"default": 1e-3}
    c.final_lr_fraction = 0.02
    c.warmup = 0.05
    c.b2 = 0.98
    c.weight_decay = 0.0
    c.clip_norm = 1.0
    c.ema_decay = 0.995
    c.log_every = 20
    c.checkpoint_every = 250
    c.keep_checkpoints = 2
    c.prefetch = 4
    c.export_dtype = "float16"
    return c
