"""A small training run, alone or as one of several processes.

    python -m tests.launch.small_run WORKDIR STEPS MESH [BROKEN]

Six hundred numbers learn the mean of noise; every batch takes a moment, so that a test can come in between.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from mgie_jax import distributed
from mgie_jax.data.pipeline import HostBatch
from mgie_jax.paths import to_path
from mgie_jax.sharding import make_mesh, param_shardings
from mgie_jax.train.config import default_config
from mgie_jax.train.loop import Task, fit

BATCH = 4
SECONDS = 0.1


def loss(trainable, frozen, batch, key):
    kernel = trainable["edit_head"]["llm2hid"]["kernel"]
    noise = jax.random.normal(key, kernel.shape)
    value = jnp.square(kernel + 0.1 * noise - batch[:, None, :] * frozen["emb"][0]).mean()
    return value, {"loss": value}


def batch(number, rows):
    time.sleep(SECONDS)
    places = number * BATCH + np.arange(BATCH)[rows]
    values = np.stack([np.random.default_rng(place).standard_normal(20, np.float32) for place in places])
    return HostBatch(values, tuple(map(str, places)), ())


def main(workdir: str, steps: str, mesh: str, broken: str = "none") -> None:
    """`broken` is a process whose batch 8 cannot be read."""

    def rows_of(number, rows):
        if number == 8 and str(jax.process_index()) == broken:
            raise ValueError("photo.jpg is broken")
        return batch(number, rows)

    config = default_config()
    config.update({
        "steps": int(steps), "batch_size": BATCH, "learning_rate": {"default": 0.05}, "ema_decay": 0.9, "prefetch": 1,
        "log_every": 1, "checkpoint_every": 5, "mesh": tuple(map(int, mesh.split(","))),
    })  # fmt: skip
    with distributed.joined(config.distributed):
        mesh = make_mesh(config.mesh)
        params = {"edit_head": {"llm2hid": {"kernel": np.zeros((30, 20), np.float32)}}}
        frozen = {"emb": np.ones((8, 20), np.float32)}
        params, frozen = (jax.device_put(tree, param_shardings(tree, mesh)) for tree in (params, frozen))
        fit(Task(params, frozen, loss, rows_of), config, to_path(workdir), mesh)


if __name__ == "__main__":
    main(*sys.argv[1:])
