"""A joint training step of a config, as `mgie train` makes it, and what a peer needs to make the same."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import PyTree

from mgie_jax.bench.inputs import Source, shapes_of, train_batch
from mgie_jax.bench.stages import Work
from mgie_jax.models.mgie import MGIE, NUM_IMG_TOKENS
from mgie_jax.sharding import make_mesh, state_shardings
from mgie_jax.train import tasks
from mgie_jax.train.loss import EditPairBatch, make_draws
from mgie_jax.train.optimizer import make_optimizer, schedules
from mgie_jax.train.start import param_dtype
from mgie_jax.train.state import init_state, split_params
from mgie_jax.train.step import make_step
from mgie_jax.weights.rules import iter_torch

CHECKED = 3  # updates whose losses are compared; they see each other's


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for a config of another stage, or one that no run could use."""
    tasks.check_choices(config)
    if config.stage != "joint":
        raise ValueError(f"config.stage is {config.stage!r}: `mgie bench train` measures the joint step")


def work(config: ml_collections.ConfigDict, source: Source) -> Work:
    """Training steps, one a run, each going on from the last; on one device. Averaged weights are off.

    Its bytes are those of the trained weights and AdamW's averages, read and written, and of the frozen weights, read.
    """
    sizes, trainable = source.sizes, tasks.trainable(config)
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    tasks.check_batch(config, mesh)
    given = source.params(jnp.float32)

    def placed(path: tuple, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jnp.asarray(leaf, param_dtype(name, trainable, config.frozen_dtype))

    params = jax.tree_util.tree_map_with_path(placed, {name: given[name] for name in tasks.STAGES["joint"].parts})
    trained, frozen = split_params(params, trainable)
    optimizer = make_optimizer(config)
    state = init_state(trained, optimizer, ema=False)
    shardings = state_shardings(jax.eval_shape(lambda: state), mesh)
    loss = tasks.make_loss(config, sizes, sizes.mllm.llm.vocab_size - NUM_IMG_TOKENS)
    update = make_step(loss, optimizer, 0.0, accumulate=config.accumulate, shardings=shardings)
    batch, key = jax.device_put(train_batch(config, sizes)), jax.random.key(config.seed)
    state = jax.device_put(state, shardings)
    nbytes = float(2 * _bytes((state.params, state.opt_state)) + _bytes(frozen))
    flops = float(tasks.flops_per_example(config, sizes) * config.batch_size)

    def step() -> float:
        nonlocal state
        state, metrics = update(state, frozen, batch, key)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return Work("train", step, flops, nbytes, outputs=lambda: {"loss": np.float32(step())})


def inputs(config: ml_collections.ConfigDict, source: Source) -> dict[str, np.ndarray]:
    """The batch, and the draws of the first `CHECKED` updates."""
    batch: EditPairBatch = train_batch(config, source.sizes)
    arrays = {name: np.asarray(value) for name, value in vars(batch.text).items()}
    arrays |= {"source": batch.source, "target": batch.target}
    model, key = MGIE(source.sizes), jax.random.key(config.seed)
    for k in range(CHECKED):
        drawn = make_draws(jax.random.fold_in(key, k), model, batch, config.noise_draws, config.timestep_power)
        arrays |= {f"{name}/{k}": np.asarray(value) for name, value in vars(drawn).items()}
    return arrays


def request(config: ml_collections.ConfigDict, source: Source) -> dict:
    """What trains and how, by PyTorch's names."""
    trained = split_params(shapes_of(source.sizes), tasks.trainable(config))[0]
    rates, prefix = schedules(config), {"mllm": ""}
    return {
        "trained": {
            part: [prefix.get(part, f"{part}.") + key for key, _ in iter_torch(tree)] for part, tree in trained.items()
        },
        "rates": {part: [float(rates.get(part, rates.get("default"))(k)) for k in range(CHECKED)] for part in trained},
        "b2": config.b2, "weight_decay": config.weight_decay, "clip_norm": config.clip_norm, "draws": CHECKED,
        "compute_dtype": config.compute_dtype,
    }  # fmt: skip


def _bytes(tree: PyTree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
