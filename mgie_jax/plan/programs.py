"""What there is to plan: the compiled programs of a run, and the shapes of what they are given.

They are the very functions that `mgie train`, `mgie edit` and `mgie prepare` call. No weights are made: arguments are
shapes, dtypes and shardings.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh, NamedSharding, PartitionSpec, use_abstract_mesh
from jaxtyping import PyTree

from mgie_jax import edit
from mgie_jax import programs as running
from mgie_jax.data import ask
from mgie_jax.diffusion.sample import SAMPLERS, scales
from mgie_jax.models import presets
from mgie_jax.models.mgie import MGIE, NUM_IMG_TOKENS
from mgie_jax.models.quantize import check, quantize_params
from mgie_jax.models.t5 import T5ForConditionalGeneration
from mgie_jax.sharding import BATCH, batch_sharding, fit, param_shardings, state_shardings
from mgie_jax.text.widths import planned_width
from mgie_jax.train import tasks
from mgie_jax.train.loss import EditPairBatch, TextBatch
from mgie_jax.train.optimizer import make_optimizer
from mgie_jax.train.start import model_config, param_dtype
from mgie_jax.train.state import init_state, split_params
from mgie_jax.train.step import make_step

WORDS = 64  # tokens of a prompt beside the photo's
SUMMARY_TOKENS = 64  # at most, of a summary
SUMMARIZERS = {"mgie_7b": presets.flan_t5_xxl}
END, PAD = 2, 0  # LLaMA's; which tokens they are changes nothing of what is compiled


@dataclass(frozen=True)
class Program:
    """A jitted function and what it is called with.

    Attributes:
        name: such as "train".
        jitted: what `jax.jit` returned.
        leading: static arguments that stand first.
        arguments: the others by name, in order: pytrees of `jax.ShapeDtypeStruct`, each with its sharding on the mesh.
            All of it stays on the devices while the program runs, also what the program does not read.
        static: static keyword arguments.
        mesh: that they lie on.
        examples: rows of its batch, over all devices.
        runs: how often it runs for one batch.
        model_flops: FLOPs of a run that are of use (`train.flops`), over all devices; None where all of them are.
        while_turns: how often at most a loop turns whose end depends on the data.
        beside: what else lies on the devices meanwhile, as `arguments` do.
    """

    name: str
    jitted: Callable
    leading: tuple
    arguments: dict[str, PyTree]
    mesh: Mesh
    examples: int
    static: dict[str, Any] = field(default_factory=dict)
    runs: int = 1
    model_flops: float | None = None
    while_turns: int = 1
    beside: PyTree = None

    def trace(self) -> jax.stages.Traced:
        """Its jaxpr, to be lowered and compiled for the devices of the mesh."""
        with use_abstract_mesh(self.mesh.abstract_mesh):
            return self.jitted.trace(*self.leading, *self.arguments.values(), **self.static)

    def shapes(self) -> PyTree:
        """What it returns."""
        with use_abstract_mesh(self.mesh.abstract_mesh):
            return self.jitted.eval_shape(*self.leading, *self.arguments.values(), **self.static)


def programs(
    config: ml_collections.ConfigDict, mode: str, mesh: Mesh, *, batch: int | None = None, quantize: str | None = None
) -> list[Program]:
    """The programs of a run, in the order in which they run.

    Args:
        config: of `mgie train`; for "edit" and "prepare" only its model and `compute_dtype` count.
        mode: "train", "edit" or "prepare".
        batch: examples at once, over all devices; None: the config's, 1 edit, 16 to prepare.
        quantize: of "edit", None or one of `models.quantize.MODES`.

    Raises:
        ValueError: another mode, or the batch, mesh and config do not fit each other, or qwix is not installed.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}: choose one of {', '.join(MODES)}")
    if batch is not None and batch < 1:
        raise ValueError(f"a batch of {batch}: give at least 1")
    if quantize is not None and mode != "edit":
        raise ValueError(f"mode {mode!r} has no quantized weights; only an edit has")
    return MODES[mode](config, mesh, batch, **({"quantize": quantize} if quantize else {}))


def train_programs(config: ml_collections.ConfigDict, mesh: Mesh, batch: int | None) -> list[Program]:
    """The training step of a joint stage, or of the MLLM's."""
    if batch is not None:
        config = config.copy_and_resolve_references()
        config.batch_size = batch
    tasks.check_choices(config)
    tasks.check_batch(config, mesh)
    if config.stage == "vae":
        raise ValueError("config.stage is vae: an autoencoder trains on one device; plan the stage mllm or joint")
    sizes, trained = model_config(config), tasks.trainable(config)
    rows, seen = config.batch_size, sizes.mllm.vision.image_size

    def leaf(path: tuple, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jax.ShapeDtypeStruct(x.shape, param_dtype(name, trained, config.frozen_dtype))

    whole = {name: tree for name, tree in MGIE(sizes).shapes().items() if name in tasks.STAGES[config.stage].parts}
    params, frozen = split_params(jax.tree_util.tree_map_with_path(leaf, whole), trained)
    optimizer = make_optimizer(config)
    state = jax.eval_shape(partial(init_state, optimizer=optimizer, ema=config.ema_decay > 0), params)
    shardings = state_shardings(state, mesh)
    text = TextBatch(
        ids=_shape((rows, config.max_tokens), jnp.int32),
        mask=_shape((rows, config.max_tokens), bool),
        labels=_shape((rows, config.max_tokens), jnp.int32),
        clip_pixels=_shape((rows, seen, seen, 3)),
    )
    photos = _shape((rows, config.image_size, config.image_size, 3))
    examples = text if config.stage == "mllm" else EditPairBatch(text, photos, photos)
    loss = tasks.make_loss(config, sizes, _img0(sizes))
    step = make_step(loss, optimizer, config.ema_decay, accumulate=config.accumulate, shardings=shardings)
    arguments = {
        "state": _placed(state, shardings),
        "frozen": _placed(frozen, param_shardings(frozen, mesh)),
        "batch": jax.tree.map(lambda x: _at(x, batch_sharding(mesh)), examples),
        "key": _replicated(mesh, jax.eval_shape(lambda: jax.random.key(0))),
    }
    flops = tasks.flops_per_example(config, sizes) * rows
    return [Program("train", step, (), arguments, mesh, rows, model_flops=flops)]


def edit_programs(
    config: ml_collections.ConfigDict, mesh: Mesh, batch: int | None, quantize: str | None = None
) -> list[Program]:
    """The stages of an edit of square photos of the model's resolution, with its own sampler and number of steps."""
    sizes, dtype, rows = model_config(config), jnp.dtype(config.compute_dtype), batch or 1
    check(quantize)
    model = MGIE(sizes, dtype, quantize=quantize)
    plan = SAMPLERS[sizes.sampling.sampler](sizes.schedule, sizes.sampling.steps)
    side, seen, turns = sizes.sampling.resolution, sizes.mllm.vision.image_size, sizes.sampling.max_new_tokens
    shapes = model.shapes() | {"emb": _shape((NUM_IMG_TOKENS, sizes.mllm.llm.hidden_size))}
    params = _weights(shapes, dtype, mesh, quantized=quantize is not None)
    width = planned_width(sizes.prompt, sizes.mllm.vision.num_patches)
    put = partial(_over_rows, mesh)
    told = scales(rows, sizes.sampling.guidance_scale, sizes.sampling.image_guidance_scale)
    asked = put(edit.EditBatch(
        ids=_shape((rows, width), jnp.int32),
        mask=_shape((rows, width), bool),
        clip_pixels=_shape((rows, seen, seen, 3)),
        pixels=_shape((rows, side, side, 3)),
        scales=jax.tree.map(lambda x: _shape(x.shape), told),
    ))  # fmt: skip
    keys = put(jax.eval_shape(lambda: jax.vmap(jax.random.key)(jnp.zeros(rows, jnp.uint32))))
    special = edit.Special(_img0(sizes), END, PAD)

    def stage(name: str, jitted: Callable, arguments: dict[str, PyTree], runs: int = 1, **static) -> Program:
        everything = {"params": params, **arguments}
        return Program(name, jitted, (model,), everything, mesh, rows, static, runs, None, turns)

    write = stage("write", running.write, {"batch": running.text(asked)}, special=special)
    states = put(write.shapes()[1])
    guide = stage("guide", running.guide, {"states": states, "pixels": asked.pixels})
    conditions = put(guide.shapes())
    state = put(jax.eval_shape(partial(edit.start, plan), conditions, keys))
    chunks = running.chunks(len(plan.table.timestep))
    first, last = chunks[0]
    table = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), plan.table.rows(first, last))
    drawn = {
        "conditions": conditions, "scales": asked.scales, "rows": _replicated(mesh, table), "state": state, "keys": keys
    }  # fmt: skip
    denoise = stage("denoise", running.denoise, drawn, len(chunks), stochastic=plan.stochastic)
    return [write, guide, denoise, stage("decode", running.decode, {"latents": state.x})]


def prepare_programs(config: ml_collections.ConfigDict, mesh: Mesh, batch: int | None) -> list[Program]:
    """The MLLM's answer and, of a model that has one in `SUMMARIZERS`, its summary, both of their usual lengths."""
    sizes, dtype, rows = model_config(config), jnp.dtype(config.compute_dtype), batch or 16
    share = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % share:
        raise ValueError(f"a batch of {rows} does not divide over data * fsdp = {share} of the mesh")
    model, put = MGIE(sizes, dtype), partial(_over_rows, mesh)
    mllm, seen = _weights({"mllm": model.shapes()["mllm"]}, dtype, mesh)["mllm"], sizes.mllm.vision.image_size
    width = ask.bucket(sizes.mllm.vision.num_patches + WORDS)

    def texts(width: int) -> dict[str, PyTree]:
        return put({"ids": _shape((rows, width), jnp.int32), "mask": _shape((rows, width), bool)})

    read = {"params": mllm, **texts(width), "pixels": put(_shape((rows, seen, seen, 3)))}
    static = {"max_new_tokens": ask.MAX_NEW_TOKENS, "eos_id": END, "pad_id": PAD}
    answer = partial(Program, "answer", ask.answer, (model,), read, mesh, rows, static, while_turns=ask.MAX_NEW_TOKENS)
    if config.init or config.model not in SUMMARIZERS:
        return [answer()]
    t5 = T5ForConditionalGeneration(SUMMARIZERS[config.model](), dtype)
    ids, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
    weights = _weights(jax.eval_shape(t5.init, jax.random.key(0), ids, mask, ids)["params"], dtype, mesh)
    told = {"params": weights, **texts(ask.bucket(ask.MAX_NEW_TOKENS))}  # the cleaned answer is no longer than that
    static = {"length_penalty": 1.0, "early_stopping": False}
    summary = partial(Program, "summarize", ask.summary, (t5,), told, mesh, rows, static, while_turns=SUMMARY_TOKENS)
    return [answer(beside={"summarizer": weights}), summary(beside={"mllm": mllm})]


MODES = {"train": train_programs, "edit": edit_programs, "prepare": prepare_programs}


def _img0(sizes: presets.MGIEConfig) -> int:
    return sizes.mllm.llm.vocab_size - NUM_IMG_TOKENS


def _shape(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _at(x: jax.ShapeDtypeStruct, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def _placed(tree: PyTree, shardings: PyTree) -> PyTree:
    return jax.tree.map(_at, tree, shardings)


def _weights(tree: PyTree, dtype: Any, mesh: Mesh, quantized: bool = False) -> PyTree:
    tree = jax.tree.map(lambda x: _shape(x.shape, dtype), tree)
    tree = jax.eval_shape(quantize_params, tree) if quantized else tree
    return _placed(tree, param_shardings(tree, mesh))


def _over_rows(mesh: Mesh, tree: PyTree) -> PyTree:
    """As `Editor` places its batches."""
    return jax.tree.map(lambda x: _at(x, NamedSharding(mesh, fit(BATCH, x.shape, mesh))), tree)


def _replicated(mesh: Mesh, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: _at(x, NamedSharding(mesh, PartitionSpec())), tree)
