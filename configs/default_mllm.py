"""The bundled model's first stage: the MLLM learns, from scratch, to write expressive instructions."""

import ml_collections

from mgie_jax.train.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """Vision tower, projector and decoder all train, on L_ins alone: there is no small LLaVA to start from."""
    c = default_config()
    c.stage = "mllm"
    c.model = "default"
    c.trainable = ("mllm/",)
    c.mix = (0.7, 0.18, 0.12)  # global, photo-dependent and local edits
    c.seed = 1
    c.steps = 780
    c.batch_size = 32
    c.example_size = 112
    c.max_tokens = 168
    c.learning_rate = {"default": 1e-3}
    c.final_lr_fraction = 0.02
    c.warmup = 0.05
    c.b2 = 0.98
    c.ema_decay = 0.995
    c.export_dtype = "float16"
    return c
