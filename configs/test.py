"""Two steps of a stage with the smallest model, as the tests run it: configs/test.py:vae, :mllm, :joint."""

import ml_collections

from mgie_jax.train.config import default_config


def get_config(stage: str = "joint") -> ml_collections.ConfigDict:
    """Seconds on one CPU core."""
    c = default_config()
    c.stage = stage
    c.model = "test"
    c.trainable = ("mllm/",) if stage == "mllm" else ()
    c.mix = (0.7, 0.2, 0.1)
    c.steps = 2
    c.batch_size = 2
    c.example_size = 32
    c.image_size = 16
    c.max_tokens = 384
    c.learning_rate = {"mllm": 5e-4, "default": 1e-4}
    c.lpips_weight = 0.0
    c.log_every = 1
    c.checkpoint_every = 1
    c.keep_checkpoints = 1
    c.prefetch = 1
    return c
