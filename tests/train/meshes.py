"""Five updates, and of the joint task an edit, on each of several meshes of forced CPU devices.

`on_devices` runs this file as a script, because the number of devices is settled before JAX starts:

    python -m tests.train.meshes joint|mllm MODEL_DIR OUT.npz MESH...

where a MESH is "data,fsdp,tensor" or "data,fsdp,tensor,accumulate"; "1,1,1" is one device without a mesh. Of each, OUT
gets "MESH/losses", the trained parameters "MESH/params/PATH", the bytes of the training state on the fullest device,
"MESH/bytes", and of the joint task "MESH/pictures" and "MESH/tokens".
"""

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from mgie_jax import edit
from mgie_jax.diffusion.sample import SAMPLERS, scales
from mgie_jax.models.mgie import MGIE
from mgie_jax.models.presets import MGIEConfig
from mgie_jax.sharding import batch_sharding, init_sharded, make_mesh, param_sharding, param_shardings, state_shardings
from mgie_jax.text.prompt import IGNORE
from mgie_jax.train.loss import EditPairBatch, TextBatch, make_instruction_loss, make_joint_loss
from mgie_jax.train.optimizer import hold
from mgie_jax.train.state import init_state, split_params
from mgie_jax.train.step import make_step
from mgie_jax.weights.files import load_model_dir
from mgie_jax.weights.rules import sharded

STEPS, ROWS, TOKENS = 5, 8, 32
TRAINED = {
    "mllm": ("mllm/model/", "mllm/lm_head/"),
    "joint": ("mllm/model/embed_tokens/", "mllm/lm_head/", "mllm/model/layers/", "edit_head/", "unet/"),
}
# A key's bias moves no attention weight: its gradient is rounding, of which AdamW with its usual epsilon makes steps of
# full length, in directions that no two programs share.
OPTIMIZER = hold(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(5e-4, eps=1e-5, weight_decay=0.0)))

# XLA:CPU has one pool of threads for all devices, by default as many as there are devices, and a collective blocks a
# thread until all have come: some more threads, and a schedule that starts fewer collectives at a time, keep programs
# with hundreds of them from waiting for ever. The rest is for few and busy cores.
ENVIRONMENT = {"NPROC": "32", "JAX_PLATFORMS": "cpu"}
FLAGS = (
    "--xla_cpu_enable_concurrency_optimized_scheduler=false --xla_cpu_collective_call_terminate_timeout_seconds=600 "
    "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count="
)


def on_devices(count: int, task: str, model_dir: Path, out: Path, meshes: Sequence[str]) -> dict[str, dict]:
    """{mesh: {"losses": ..., "params/PATH": ..., ...}} of a process with that many devices."""
    environment = os.environ | ENVIRONMENT | {"XLA_FLAGS": FLAGS + str(count)}
    command = [sys.executable, "-m", "tests.train.meshes", task, model_dir, out, *meshes]
    subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], check=True)
    found: dict[str, dict] = {mesh: {} for mesh in meshes}
    with np.load(out) as file:
        for key in file.files:
            mesh, what = key.split("/", 1)
            found[mesh][what] = file[key]
    return found


def assert_same_training(many: dict, one: dict) -> None:
    """The same losses, and of every parameter as far as float32 goes the same values after the last update."""
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=1e-5)
    assert len(set(one["losses"])) == STEPS
    for key in (key for key in one if key.startswith("params/")):
        assert np.abs(many[key] - one[key]).max() <= 1e-5 * np.abs(one[key]).max(), key


def make_batch(config: MGIEConfig, number: int, size: int = 16) -> EditPairBatch:
    """Random texts with one to eight more labels than the visual tokens, and random photos."""
    rng, mllm = np.random.default_rng(number), config.mllm
    ids = rng.integers(3, mllm.im_patch_id, (ROWS, TOKENS)).astype(np.int32)
    ids[:, 1 : 1 + mllm.vision.num_patches] = mllm.im_patch_id
    ids[:, -9:-1] = mllm.llm.vocab_size - 8 + np.arange(8)
    labels = np.where(np.arange(TOKENS) >= TOKENS - 10 - np.arange(ROWS)[:, None], ids, IGNORE).astype(np.int32)
    seen = rng.standard_normal((ROWS, mllm.vision.image_size, mllm.vision.image_size, 3), np.float32)
    photos = rng.uniform(-1, 1, (2, ROWS, size, size, 3)).astype(np.float32)
    return EditPairBatch(TextBatch(ids, np.ones(ids.shape, bool), labels, seen), *photos)


def edit_batch(config: MGIEConfig) -> edit.EditBatch:
    batch = make_batch(config, 100, config.sampling.resolution)
    lengths = TOKENS - 9 - np.arange(ROWS) % 4
    return edit.EditBatch(
        ids=batch.text.ids, mask=np.arange(TOKENS) < lengths[:, None], clip_pixels=batch.text.clip_pixels,
        pixels=batch.source, scales=scales(ROWS, 7.5, 1.5),
    )  # fmt: skip


def bytes_of_fullest_device(tree) -> int:
    held: dict = {}
    for array in jax.tree.leaves(tree):
        for shard in array.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values())


def main(task: str, model_dir: str, out: str, *meshes: str) -> None:
    config, params = load_model_dir(model_dir)
    model, img0 = MGIE(config), config.mllm.llm.vocab_size - 8
    params.pop("emb")  # training takes the rows of the word embedding
    if task == "mllm":
        params, loss = {"mllm": params["mllm"]}, make_instruction_loss(model)
    else:
        loss = make_joint_loss(model, img0)
    trained, frozen = split_params(params, TRAINED[task])
    initial = partial(init_state, optimizer=OPTIMIZER, ema=True)
    plan = SAMPLERS["euler_ancestral"](config.schedule, 3)
    edited = jax.jit(partial(edit.edit, model, sampler=plan, special=edit.Special(img0, eos=2, pad=0)))

    results = {}
    for name in meshes:
        *sizes, accumulate = (*map(int, name.split(",")), 1)[:4]
        mesh = None if math.prod(sizes) == 1 else make_mesh(sizes, jax.devices()[: math.prod(sizes)])
        if mesh is None:
            rows = place = jax.device_put
            state, shardings = initial(jax.tree.map(jnp.array, trained)), None
        else:
            rows = partial(jax.device_put, device=batch_sharding(mesh))
            place = lambda tree, mesh=mesh: jax.device_put(tree, param_shardings(tree, mesh))  # noqa: E731
            state = init_sharded(initial, mesh, place(trained), shardings=state_shardings)
            shardings = state_shardings(state, mesh)
        step = make_step(loss, OPTIMIZER, 0.999, accumulate=accumulate, shardings=shardings)
        results[f"{name}/bytes"] = bytes_of_fullest_device(state)
        kept, losses = place(frozen), []
        for number in range(STEPS):
            batch = make_batch(config, number)
            state, metrics = step(state, kept, rows(batch if task == "joint" else batch.text), jax.random.key(0))
            losses.append(float(metrics["loss"]))
        results[f"{name}/losses"] = np.array(losses)
        for path, value in flatten_dict(state.params, sep="/").items():
            results[f"{name}/params/{path}"] = np.asarray(value)
        if task == "joint" and accumulate == 1:
            keys = rows(jax.vmap(jax.random.key)(np.arange(ROWS, dtype=np.uint32)))
            where = {} if mesh is None else {"place": sharded(partial(param_sharding, mesh))}
            streamed = load_model_dir(model_dir, **where)[1]
            with nullcontext() if mesh is None else jax.set_mesh(mesh):
                pictures, tokens = edited(streamed, rows(edit_batch(config)), keys)
            results[f"{name}/pictures"], results[f"{name}/tokens"] = np.asarray(pictures), np.asarray(tokens)
        print(name, losses, flush=True)
    np.savez(out, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
