"""Every key of a training config, with what it means and its value where a config file says nothing."""

import ml_collections


def default_config() -> ml_collections.ConfigDict:
    """What the files in `configs/` start from: one step after the other on whatever devices there are, in float32."""
    c = ml_collections.ConfigDict()

    # What is trained, and from what.
    c.stage = "joint"  # "vae"; "mllm": L_ins alone; "joint": L_ins + 0.5 L_edit
    c.init = ""  # the model directory to begin with; empty: random weights of the preset `model`
    c.model = "default"
    c.mode = "E2E"  # what a joint stage trains: a row of train.tasks.MODES
    c.trainable = ()  # in place of it: regular expressions, matched from the start of "unet/conv_in/kernel"
    c.whiten = False  # see train/whiten.py

    # The data: built data sets, or pairs generated from photos.
    c.data = ""  # folders of `mgie data build`, separated by commas
    c.data_weights = ()  # how often each of them is drawn from, against the others; empty: as they are long
    c.photos = ""  # a folder of `mgie data photos`, where `data` is empty
    c.cutouts = ""  # a folder of captioned cut-outs; without, no local edits are generated
    c.mix = (0.7, 0.15, 0.15)  # shares of global, photo-dependent and local edits
    c.weights = {}  # kind of edit -> how often it is shown, against the others' 1
    c.example_size = 128  # side of the generated pictures, pixels
    c.image_size = 256  # side of what the UNet (or the autoencoder) trains on, pixels
    c.crop = "center"  # of a built data set's pictures: "center" or "random"
    c.max_tokens = 512  # prompt and answer
    c.max_skipped = 0.01  # share of unusable examples above which a run stops
    c.workers = 0  # processes that make batches; 0: a thread
    c.prefetch = 4  # batches made ahead

    # The optimization.
    c.seed = 0
    c.steps = 1000
    c.batch_size = 32  # of all devices together
    c.accumulate = 1  # parts a batch is computed in, one after the other, to save memory
    c.learning_rate = {"default": 1e-4}  # peaks: of a top-level name ("mllm", "unet", ...), and of the rest
    c.warmup = 0.03  # share of the steps; then a cosine down to
    c.final_lr_fraction = 0.0
    c.b2 = 0.999
    c.weight_decay = 0.0
    c.clip_norm = 1.0
    c.ema_decay = 0.0  # 0: no average
    c.noise_draws = 1  # see train.loss.make_joint_loss
    c.timestep_power = 1.0
    c.on_nonfinite = "stop"  # or "skip" the update

    # The autoencoder's stage.
    c.max_zoom = 2.0
    c.color_jitter = 0.5
    c.lpips_weight = 0.1
    c.kl_weight = 1e-6

    # Devices and number formats.
    c.mesh = (1, -1, 1)  # sizes of the axes data, fsdp, tensor; -1: all devices that are left
    c.distributed = False  # whether this process is one of several, as the surroundings say
    c.remat = "none"  # what the backward pass recomputes: "none", "blocks", "dots" (all but matmuls)
    c.compute_dtype = "float32"  # or "bfloat16"; what is trained is float32 in any case
    c.frozen_dtype = "float32"
    c.export_dtype = "float32"

    # What is written.
    c.log_every = 20
    c.grid_every = 0  # steps between pictures of held-out edits; 0: none
    c.checkpoint_every = 250
    c.keep_checkpoints = 2  # the newest so many
    c.keep_every = 0  # and every so many steps one for good; 0: none
    c.profile = ()  # (first, end): traces updates first .. end - 1, counted from where this process began
    c.wandb = ""  # a project of Weights & Biases
    return c
