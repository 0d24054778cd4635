"""A model moved tensor by tensor: from directory to directory without JAX, and from its files onto devices."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mgie_jax.models import presets
from mgie_jax.weights import files
from mgie_jax.weights.files import load_model_dir, save_model_dir, write_model_dir
from mgie_jax.weights.tensors import ModelDirError

CONFIG = presets.test()


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def part_pairs(path):
    return {part: files.part_tensors(path, part).items() for part in files.TABLES}


def test_streaming_a_model_changes_no_bit(tiny_params, tiny_tokenizer_dir, tmp_path):
    """From one directory to another without JAX, dtypes kept, in other shards; the files' own names are kept too."""
    save_model_dir(tmp_path / "a", CONFIG, tiny_params, tiny_tokenizer_dir, dtype=jnp.bfloat16)
    progress = []
    write_model_dir(tmp_path / "b", CONFIG, part_pairs(tmp_path / "a"), tiny_tokenizer_dir, shard_bytes=50_000,
                    progress=progress.append)  # fmt: skip
    written = part_pairs(tmp_path / "b")
    for part, pairs in part_pairs(tmp_path / "a").items():
        a, b = dict(pairs), dict(written[part])
        assert a.keys() == b.keys()
        for key in a:
            assert (a[key].dtype, a[key].shape) == (b[key].dtype, b[key].shape)
            assert np.asarray(a[key]).tobytes() == np.asarray(b[key]).tobytes()
    assert sum(progress) == sum(tensor.nbytes for pairs in part_pairs(tmp_path / "a").values() for _, tensor in pairs)
    assert json.loads((tmp_path / "b/mllm/config.json").read_text())["torch_dtype"] == "bfloat16"
    write_model_dir(tmp_path / "c", CONFIG, part_pairs(tmp_path / "b"), tiny_tokenizer_dir, dtype=np.float32)
    back = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16).astype(np.float32), tiny_params)
    assert_equal(load_model_dir(tmp_path / "c")[1], back)


def test_streaming_takes_the_names_in_circulation(tiny_model_dir, tiny_tokenizer_dir, tmp_path, tiny_params):
    """Without `emb`, with tied embeddings, buffers, and the names of older releases."""
    pairs = {part: dict(named) for part, named in part_pairs(tiny_model_dir).items()}
    pairs["edit_head"].pop("emb")
    pairs["mllm"].pop("lm_head.weight")
    pairs["mllm"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.int64)
    pairs["vision_tower"] = {key.removeprefix("vision_model."): t for key, t in pairs["vision_tower"].items()}
    pairs["vae"] = {key.replace("attentions.0.to_q", "attentions.0.query"): t for key, t in pairs["vae"].items()}
    write_model_dir(tmp_path / "m", CONFIG, {p: named.items() for p, named in pairs.items()}, tiny_tokenizer_dir)
    _, loaded = load_model_dir(tmp_path / "m")
    embedding = tiny_params["mllm"]["model"]["embed_tokens"]["embedding"]
    assert_equal(loaded["emb"], embedding[-8:])
    assert_equal(loaded["mllm"]["lm_head"]["kernel"], embedding.T)
    assert_equal(loaded["vae"], tiny_params["vae"])
    assert "vision_model.embeddings.class_embedding" in files.part_tensors(tmp_path / "m", "vision_tower")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.pop("vae"), "its parts are .*vae, given"),
        (lambda p: p["unet"].append(p["unet"][0]), "unet: .* is there twice"),
        (lambda p: p["unet"].append(("x.weight", np.zeros(3))), "unexpected: x.weight"),
        (lambda p: p["vae"].pop(0), "1 missing"),
        (lambda p: p["mllm"].append(("lm_head.weight", np.zeros(3))), "mllm: lm_head.weight is there twice"),
    ],
)
def test_streaming_checks_before_it_writes(tiny_model_dir, tiny_tokenizer_dir, tmp_path, change, words):
    pairs = {part: list(named) for part, named in part_pairs(tiny_model_dir).items()}
    change(pairs)
    with pytest.raises(ModelDirError, match=f"(?s){words}"):
        write_model_dir(tmp_path / "m", CONFIG, pairs, tiny_tokenizer_dir)
    assert list(tmp_path.iterdir()) == []


def test_sha256sum_reads_our_checksums(tiny_model_dir):
    command = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
    done = subprocess.run(command, cwd=tiny_model_dir, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    everything = {path.relative_to(tiny_model_dir).as_posix() for path in tiny_model_dir.rglob("*") if path.is_file()}
    assert {line.removesuffix(": OK") for line in done.stdout.splitlines()} == everything - {"SHA256SUMS"}


SHARDED_LOADING = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from mgie_jax.weights import rules, safetensors_files
from mgie_jax.weights.files import load_model_dir

read = []
whole_read = safetensors_files._File.read
safetensors_files._File.read = lambda self, start, into: (read.append(into.nbytes), whole_read(self, start, into))[1]
safetensors_files._File.span = 0
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
assert mesh.size == 8

def spec(path, shape):
    # Each dimension that divides by an axis is cut along it; stacked layers too, and some leaves not at all.
    free, out = ["fsdp", "tensor"], []
    for n in shape:
        axis = next((a for a in free if n % mesh.shape[a] == 0), None)
        if axis:
            free.remove(axis)
        out.append(axis)
    return NamedSharding(mesh, PartitionSpec(*out))

parts = []
take = rules.LazyLeaf.__getitem__
def counted(leaf, index):
    before = sum(read)
    part = take(leaf, index)
    parts.append((part.nbytes, sum(read) - before, leaf.shape))
    return part
rules.LazyLeaf.__getitem__ = counted

_, sharded = load_model_dir(sys.argv[1], place=rules.sharded(spec))
for nbytes, taken, shape in parts:
    assert taken == nbytes, f"{taken} bytes were read for a part of {nbytes} of {shape}"
total = sum(leaf.nbytes for leaf in jax.tree.leaves(sharded))
cut = [leaf for leaf in jax.tree.leaves(sharded) if not leaf.is_fully_replicated]
assert sum(nbytes for nbytes, _, _ in parts) == total, "every number is read once, though some devices share it"
assert all(leaf.sharding.device_set == set(jax.devices()) for leaf in jax.tree.leaves(sharded))
_, plain = load_model_dir(sys.argv[1])
jax.tree.map(np.testing.assert_array_equal, sharded, plain)
print(len(parts), len(cut), len(jax.tree.leaves(sharded)), max(nbytes for nbytes, _, _ in parts))
"""


def test_each_device_reads_its_own_part(tiny_model_dir):
    """On a 4 x 2 mesh of CPU devices: equal values, each part read alone, no byte read for another's sake."""
    done = subprocess.run(
        [sys.executable, "-c", SHARDED_LOADING, str(tiny_model_dir)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    parts, cut, leaves, _ = map(int, done.stdout.split())
    assert cut > leaves / 2 and parts > 4 * cut
