"""From a config file to a trained model directory: what a stage trains, from what, on what, and where."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from mgie_jax.data.cutouts import load_cutouts
from mgie_jax.data.generate import EditPairs, Mix
from mgie_jax.data.images import CROPS
from mgie_jax.data.order import EndlessExamples, GeneratedExamples, RecordedExamples
from mgie_jax.data.photos import load as load_photos
from mgie_jax.data.pipeline import BatchFn
from mgie_jax.distributed import joined, to_host, wait_for_all
from mgie_jax.models.mgie import MGIE
from mgie_jax.models.presets import MGIEConfig
from mgie_jax.paths import AnyPath, absolute, to_path
from mgie_jax.sharding import make_mesh
from mgie_jax.train.batches import EditPairBatches, TextBatches
from mgie_jax.train.checkpoint import steps
from mgie_jax.train.config import default_config
from mgie_jax.train.export import export
from mgie_jax.train.flops import step_flops
from mgie_jax.train.gather import hand_over
from mgie_jax.train.grid import held_out_examples, held_out_pairs, make_grid
from mgie_jax.train.interrupts import Preempted
from mgie_jax.train.loop import NonFinite, Task, fit
from mgie_jax.train.loss import make_instruction_loss, make_joint_loss
from mgie_jax.train.start import Start, init_dir, load_start, model_config, tokenizer_texts, write_fresh
from mgie_jax.train.state import split_params
from mgie_jax.train.step import SplitLoss
from mgie_jax.train.vae import make_vae_task
from mgie_jax.train.whiten import edit_head_inputs, whiten_llm2hid

WHITEN_ON = 1024  # examples

MODES = {
    # The whole paper trains, and its two ablations (section 4.2).
    "E2E": ("mllm/model/embed_tokens/", "mllm/lm_head/", "edit_head/", "unet/"),
    "FT": ("edit_head/", "unet/"),
    "FZ": ("edit_head/",),
}
"""What a joint stage trains: regular expressions, matched from the start of a parameter's path."""

FLOATS = ("float32", "bfloat16", "float16")
CHOICES = {
    "mode": tuple(MODES),
    "crop": CROPS,
    "remat": ("none", "blocks", "dots"),
    "compute_dtype": FLOATS[:2],
    "frozen_dtype": FLOATS,
    "export_dtype": FLOATS,
    "on_nonfinite": ("stop", "skip"),
}


def train(config: ml_collections.ConfigDict, workdir: AnyPath) -> AnyPath:
    """Runs one stage to its end and writes `workdir/model`, a whole model directory; returns its path.

    Interrupted, it leaves a checkpoint and no model; started again, it goes on from there. Of several processes, all
    of which call this, the first writes the model.

    Raises:
        ValueError: the config's values do not fit each other, the data or the devices, or name what is not there.
        FileNotFoundError: a folder the config names does not exist.
        KeyboardInterrupt, loop.Preempted, loop.NonFinite: see `loop.fit`.
    """
    check(config)
    if config.init:  # checkpoints remember it, and may be exported from elsewhere
        config = config.copy_and_resolve_references()
        config.init = str(absolute(config.init))
    with joined(config.distributed, shared=(Preempted, NonFinite)):
        return _train(config, to_path(workdir))


def _train(config: ml_collections.ConfigDict, workdir: AnyPath) -> AnyPath:
    mesh = make_mesh(config.mesh)
    check_batch(config, mesh)
    model = model_config(config)
    examples = training_examples(config, model)
    stage, patterns = STAGES[config.stage], trainable(config)
    path = init_dir(config, workdir)
    if not config.init:
        write_fresh(path, model, config, patterns, mesh, lambda: tokenizer_texts(examples, model))
    start = load_start(path, stage.parts, patterns, mesh, config.frozen_dtype)
    if config.whiten and not steps(workdir):
        start = whitened(config, start, examples)
    state = fit(stage.task(config, start, examples), config, workdir, mesh)
    hand_over(
        state.params if state.ema is None else state.ema,
        lambda trained: export(config, workdir, trained, workdir / "model", overwrite=True),
    )
    wait_for_all("model")
    return workdir / "model"


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for values that no run could use, before anything is read or made."""
    check_choices(config)
    if config.whiten and (config.stage != "joint" or "edit_head/" not in trainable(config)):
        raise ValueError("config.whiten is for joint training of the edit head; set it to False")
    if not config.data and not config.photos:
        raise ValueError(
            "config.data and config.photos are empty; give data sets made by `mgie data build` (--config.data=DIR,DIR) "
            "or a folder made by `mgie data photos` (--config.photos=DIR)"
        )


def check_choices(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for keys that are missing, and values that mean nothing whatever the data."""
    if missing := sorted(set(default_config()) - set(config)):
        raise ValueError(f"the config has no {', '.join(missing)}; begin it with train.config.default_config()")
    for name, known in {"stage": tuple(STAGES), **CHOICES}.items():
        if config[name] not in known:
            raise ValueError(f"config.{name} is {config[name]!r}; choose one of {', '.join(known)}")
    if config.accumulate < 1:
        raise ValueError(f"config.accumulate is {config.accumulate}; it must be at least 1")
    if config.stage == "vae" and config.data:
        raise ValueError("the autoencoder trains on config.photos; leave config.data empty")


def check_batch(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Raises ValueError where the devices cannot share a batch, or its parts, evenly."""
    share = mesh.shape["data"] * mesh.shape["fsdp"] * config.accumulate
    if config.batch_size % share:
        raise ValueError(
            f"config.batch_size is {config.batch_size}: it must divide by {share}, which is data * fsdp of the mesh "
            f"{tuple(mesh.shape.values())} times config.accumulate"
        )


def trainable(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Patterns of what is trained: `config.trainable`, or else what stage and mode say."""
    if config.trainable:
        return tuple(config.trainable)
    return MODES[config.mode] if config.stage == "joint" else (f"{config.stage}/",)


def training_examples(config: ml_collections.ConfigDict, model: MGIEConfig) -> EndlessExamples:
    """The examples that the config asks for, in their endless order."""
    if config.data:
        return RecordedExamples.open(
            config.data, seed=config.seed, resolution=model.sampling.resolution, crop=config.crop,
            weights=config.data_weights,
        )  # fmt: skip
    return GeneratedExamples(EditPairs(
        list(load_photos(config.photos, "train").values()),
        seed=config.seed,
        size=config.example_size,
        cutouts=load_cutouts(config.cutouts) if config.cutouts else (),
        mix=Mix(*config.mix),
        weights=dict(config.weights),
    ))  # fmt: skip


def whitened(config: ml_collections.ConfigDict, start: Start, examples: EndlessExamples) -> Start:
    """The start with an edit head whose first layer fits what it will read; see train/whiten.py."""
    batches = TextBatches(examples, start.tokenizer, start.config, 32, config.max_tokens)
    texts = (batches(number, slice(None)).arrays for number in range(WHITEN_ON // 32))
    inputs = edit_head_inputs(MGIE(start.config), start.params, texts, start.tokenizer.img_ids[0])
    head = start.params["edit_head"]
    made = to_host(whiten_llm2hid(to_host(head["llm2hid"]), inputs))
    llm2hid = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), made, head["llm2hid"])
    return Start(start.config, {**start.params, "edit_head": {**head, "llm2hid": llm2hid}}, start.tokenizer)


def _vae(config: ml_collections.ConfigDict, start: Start, examples: GeneratedExamples) -> Task:
    return make_vae_task(start.config.vae, examples.pairs.photos, config, start.params["vae"], trainable(config))


def _mllm(config: ml_collections.ConfigDict, start: Start, examples: EndlessExamples) -> Task:
    batch = TextBatches(examples, start.tokenizer, start.config, config.batch_size, config.max_tokens)
    return _task(config, start, batch)


def _joint(config: ml_collections.ConfigDict, start: Start, examples: EndlessExamples) -> Task:
    batch = EditPairBatches(
        examples, start.tokenizer, start.config, config.batch_size, config.max_tokens, config.image_size
    )
    return _task(config, start, batch, _grid(config, start))


def _task(config: ml_collections.ConfigDict, start: Start, batch: BatchFn, grid: Callable | None = None) -> Task:
    params, frozen = split_params(start.params, trainable(config))
    loss = make_loss(config, start.config, start.tokenizer.img_ids[0])
    return Task(params, frozen, loss, batch, grid, flops_per_example(config, start.config))


def make_loss(config: ml_collections.ConfigDict, sizes: MGIEConfig, img0_id: int) -> SplitLoss:
    """What a joint stage minimizes, or the MLLM's."""
    model = MGIE(sizes, jnp.dtype(config.compute_dtype), config.remat)
    if config.stage == "mllm":
        return make_instruction_loss(model)
    return make_joint_loss(model, img0_id, noise_draws=config.noise_draws, timestep_power=config.timestep_power)


def _grid(config: ml_collections.ConfigDict, start: Start) -> Callable | None:
    if not config.grid_every:
        return None
    if config.data:
        examples = held_out_examples(config.data.split(",")[0].strip(), start.config.sampling.resolution)
    else:
        examples = held_out_pairs(config.photos, config.seed, config.example_size)
    dtype = jnp.dtype(config.compute_dtype)
    return make_grid(start.config, start.tokenizer, examples, config.image_size, dtype)


def flops_per_example(config: ml_collections.ConfigDict, sizes: MGIEConfig) -> float:
    """Of a step of a joint stage, or of the MLLM's; see `train.flops`."""
    return step_flops(
        sizes, trainable(config), tokens=config.max_tokens,
        image_size=config.image_size if config.stage == "joint" else None,
        batch_size=config.batch_size // config.accumulate, noise_draws=config.noise_draws,
    ).training  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One kind of training: the top-level trees it reads, and how its task is made."""

    parts: tuple[str, ...]
    task: Callable[[ml_collections.ConfigDict, Start, EndlessExamples], Task]


STAGES = {
    "vae": Stage(("vae",), _vae),
    "mllm": Stage(("mllm",), _mllm),
    "joint": Stage(("mllm", "edit_head", "unet", "vae"), _joint),
}
