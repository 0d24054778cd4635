"""Two steps of a stage with the smallest model, as the tests run it: configs/test.py:vae, :mllm, :joint."""

import ml_collections


def get_config(stage: str = "joint") -> ml_collections.ConfigDict:
    """Seconds on one CPU core."""
    c = ml_collections.ConfigDict()
    c.model = "test"
    c.stage = stage
    c.init = ""
    c.photos = ""
    c.cutouts = ""
    c.mix = (0.7, 0.2, 0.1)
    c.seed = 0
    c.steps = 2
    c.batch_size = 2
    c.example_size = 32
    c.image_size = 16
    c.max_tokens = 384
    c.noise_draws = 1
    c.timestep_power = 1.0
    c.crop = 16
    c.max_zoom = 2.0
    c.color_jitter = 0.5
    c.lpips_weight = 0.0
    c.kl_weight = 1e-6
    paper = ("mllm/model/embed_tokens/", "mllm/lm_head/", "edit_head/", "unet/")
    c.trainable = ("mllm/",) if stage == "mllm" else paper
    c.learning_rate = {"mllm": 5e-4, "default": 1e-4}
    c.final_lr_fraction = 0.0
    c.warmup = 0.03
    c.b2 = 0.999
    c.weight_decay = 0.0
    c.clip_norm = 1.0
    c.ema_decay = 0.0
    c.log_every = 1
    c.checkpoint_every = 1
    c.keep_checkpoints = 1
    c.prefetch = 1
    c.export_dtype = "float32"
    return c
