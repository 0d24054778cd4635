"""Arrays spread over processes reach process 0 whole, one at a time, in any order."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgie_jax
from mgie_jax.train.gather import hand_over
from mgie_jax.weights.rules import iter_torch, to_torch

ROOT = Path(mgie_jax.__file__).parents[1]


def tree():
    rng = np.random.default_rng(0)
    kernels = rng.standard_normal((3, 8, 4), np.float32)
    return {"layers": {"q": {"kernel": kernels}}, "head": {"kernel": rng.standard_normal((4, 8), np.float32)},
            "scale": np.float32(3)}  # fmt: skip


def test_one_process_gets_the_same_tensors():
    arrays, made = jax.tree.map(jnp.asarray, tree()), {}
    hand_over(arrays, lambda whole: made.update(to_torch(whole)))
    assert made.keys() == to_torch(tree()).keys()
    jax.tree.map(np.testing.assert_array_equal, made, to_torch(tree()))
    # What was handed over is not kept beside the arrays.
    assert all(leaf._npy_value is None for leaf in jax.tree.leaves(arrays))


def test_an_error_of_the_writer_is_raised():
    def use(whole):
        raise ValueError("the disk is full")

    with pytest.raises(ValueError, match="disk is full"):
        hand_over(jax.tree.map(jnp.asarray, tree()), use)


SCRIPT = """
import sys
import jax, numpy as np
from mgie_jax import distributed
from mgie_jax.train import gather
from mgie_jax.sharding import make_mesh
from mgie_jax.weights.rules import iter_torch
from jax.sharding import NamedSharding, PartitionSpec
from tests.train.test_gather import tree

with distributed.joined(False):
    mesh = make_mesh((1, -1, 1))
    def put(x):
        axis = next((i for i, n in enumerate(x.shape) if n % 2 == 0), None)
        spec = PartitionSpec(*[None if i != axis else "fsdp" for i in range(x.ndim)])
        return jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda index: x[index])
    arrays = jax.tree.map(put, tree())
    sizes, gathered = [], gather._gathered
    def counted(x, layer):
        sizes.append(whole := gathered(x, layer))
        return whole
    gather._gathered = counted
    def use(whole):
        pairs = dict(iter_torch(whole))
        np.savez(sys.argv[1], **{key: np.asarray(tensor[()]) for key, tensor in reversed(pairs.items())})
    gather.hand_over(arrays, use)
    assert len(sizes) == 5 and max(whole.size for whole in sizes) == 32, "a layer at a time, each once"
    distributed.wait_for_all("end")
"""


@pytest.mark.skipif(not (ROOT / "launch" / "local.py").is_file(), reason="not a source tree")
def test_two_processes_hand_over_a_layer_at_a_time(tmp_path):
    command = [sys.executable, ROOT / "launch/local.py", "--processes", "2", "--", sys.executable, "-c", SCRIPT]
    run = subprocess.run([*command, str(tmp_path / "x.npz")], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    with np.load(tmp_path / "x.npz") as made:
        wanted = {key: np.asarray(tensor[()]) for key, tensor in iter_torch(tree())}
        assert set(made) == set(wanted) and all(np.array_equal(made[key], wanted[key]) for key in wanted)
