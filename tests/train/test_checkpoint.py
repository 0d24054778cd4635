"""Checkpoints: what is saved comes back bitwise; what was damaged since is noticed, and the one before is used."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from mgie_jax.train import checkpoint
from mgie_jax.train.checkpoint import Checkpoints
from mgie_jax.train.optimizer import make_optimizer
from mgie_jax.train.state import init_state

# As the loop makes it: one optimizer for each side, that sees nothing of the other's parameters.
OPTIMIZER = make_optimizer(ml_collections.ConfigDict({
    "learning_rate": {"unet": 1e-4, "default": 1e-3}, "steps": 100, "warmup": 0.1, "final_lr_fraction": 0.0, "b2": 0.99,
    "weight_decay": 0.0, "clip_norm": 1.0,
}))  # fmt: skip


def config(**changes):
    return ml_collections.ConfigDict({
        "stage": "joint", "seed": 3, "batch_size": 4, "data": "", "keep_checkpoints": 2, "keep_every": 0,
        "trainable": ("unet/",), "steps": 100, **changes,
    })  # fmt: skip


def state(step: int, ema: bool = True, width: int = 300):
    """A state unlike that of any other step."""
    rng = np.random.default_rng(step)
    # Large and not compressible, so that there are files whose flipped bytes no decoder notices.
    params = {"unet": {"kernel": rng.standard_normal((width, 100), np.float32)}, "head": {"bias": np.full(3, step / 7)}}
    made = init_state(jax.tree.map(jnp.asarray, params), OPTIMIZER, ema)
    moved = jax.tree.map(lambda x: x + step if jnp.issubdtype(x.dtype, jnp.floating) else x, made)
    return moved.replace(step=jnp.int32(step), params=made.params)


def save(workdir, *steps, **changes):
    with Checkpoints(workdir, config(**changes)) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step))


def restored(workdir, like=None, **changes):
    with Checkpoints(workdir, config(**changes)) as checkpoints:
        return checkpoints.restore(state(0) if like is None else like)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.structure(a) == jax.tree.structure(b)


def test_what_is_saved_comes_back_bitwise(tmp_path):
    save(tmp_path, 1, 2)
    assert_same(restored(tmp_path), state(2))
    run = json.loads((tmp_path / "checkpoints/2/default/run.json").read_text())
    assert (run["step"], run["examples"], run["seed"]) == (2, 8, 3)
    assert run["config"]["trainable"] == ["unet/"]


def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    with Checkpoints(tmp_path, config(keep_checkpoints=8)) as checkpoints:
        for step in range(1, 5):
            current = state(step, width=30_000)
            checkpoints.save(step, current)
            jax.block_until_ready(overwrite(current))
    for step in range(1, 5):
        kernel = checkpoint.read_weights(tmp_path, step)["unet"]["kernel"]
        np.testing.assert_array_equal(kernel, state(step, width=30_000).params["unet"]["kernel"])


def test_a_save_that_failed_is_told(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, config())
    monkeypatch.setattr(checkpoint, "write_sums", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"), checkpoints:
        checkpoints.save(1, state(1))
    assert checkpoint.steps(tmp_path) == []


@pytest.mark.parametrize(("keep", "every", "left"), [(2, 0, [6, 7]), (1, 3, [3, 6, 7]), (3, 2, [2, 4, 5, 6, 7])])
def test_the_newest_are_kept_and_every_kth(tmp_path, keep, every, left):
    save(tmp_path, *range(1, 8), keep_checkpoints=keep, keep_every=every)
    assert checkpoint.steps(tmp_path) == left
    save(tmp_path, 8, keep_checkpoints=keep, keep_every=every)  # another process goes on with the same rule
    assert checkpoint.steps(tmp_path) == sorted(s for s in {*left, 8} if s > 8 - keep or (every and s % every == 0))


FILES = ("manifest.ocdbt", "_METADATA", "run.json", "SHA256SUMS", "ocdbt.process_0/manifest.ocdbt", "largest", "d/")
KINDS = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one bit": lambda path: flip(path, path.stat().st_size // 2, 1),
    "zeros": lambda path: flip(path, 0, None),
}


def flip(path, at, bit):
    content = bytearray(path.read_bytes())
    if bit is None:  # as after a power failure: the length is right, the content never came
        content = bytearray(len(content))
    else:
        content[at] ^= bit
    path.write_bytes(content)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two")
    save(workdir, 1, 2)
    return workdir


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_newest_is_named_and_the_one_before_used(two, tmp_path, capfd, file, kind):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "checkpoints/2/default"
    there = [path for path in folder.rglob("*") if path.is_file()]
    if file == "largest":
        path = max(there, key=lambda path: path.stat().st_size)
    elif file.endswith("/"):
        path = next((folder / file).iterdir())
    else:
        path = folder / file
    KINDS[kind](path)
    assert_same(restored(tmp_path), state(1))
    (line,) = capfd.readouterr().err.splitlines()
    assert "checkpoint 2 is damaged" in line
    assert path.name in line or file == "SHA256SUMS"  # which may say anything now
    assert (tmp_path / "damaged/2").is_dir()
    save(tmp_path, 2)  # its number can be used again
    assert_same(restored(tmp_path), state(2))


@pytest.mark.parametrize("content", ["", "default"])
def test_a_folder_without_its_content_is_damaged(two, tmp_path, capfd, content):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints/2/default")
    (tmp_path / "checkpoints/2" / content).mkdir(exist_ok=True)
    assert_same(restored(tmp_path), state(1))
    assert "checkpoint 2 is damaged" in capfd.readouterr().err


@pytest.mark.parametrize("file", ["_CHECKPOINT_METADATA", "commit_success.txt", "default/commit_success.txt"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_orbax_adds_for_itself_may_be_damaged(two, tmp_path, file, kind):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    KINDS[kind](tmp_path / "checkpoints/2" / file)
    assert_same(restored(tmp_path), state(2))


def test_when_none_is_left_the_run_stops_and_nothing_moves(two, tmp_path):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    for step in (1, 2):
        (tmp_path / f"checkpoints/{step}/default/_METADATA").unlink()
    with pytest.raises(ValueError, match="all checkpoints are damaged.*_METADATA is missing.*begin anew"):
        restored(tmp_path)
    assert checkpoint.steps(tmp_path) == [1, 2]


def test_a_save_that_was_killed_is_no_checkpoint(two, tmp_path):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    half = tmp_path / "checkpoints/3.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints/2", half)
    assert checkpoint.steps(tmp_path) == [1, 2]
    assert_same(restored(tmp_path), state(2))
    assert not half.exists()


@pytest.mark.parametrize("name, value", [("batch_size", 8), ("seed", 4), ("data", "magicbrush"), ("stage", "vae")])
def test_another_run_is_refused(two, name, value):
    with pytest.raises(ValueError, match=f"config.{name}=.*now it is {value!r}.*another workdir"):
        restored(two, **{name: value})


def test_what_does_not_change_the_examples_may_change(two):
    changes = {"steps": 7, "workers": 3, "log_every": 9, "mesh": (1, 1, 1), "checkpoint_every": 5}
    assert_same(restored(two, **changes), state(2))


@pytest.mark.parametrize(("like", "words"), [
    (lambda: state(0, ema=False), "ema/head/bias has shape (3,) there, none here"),
    (lambda: state(0, width=301), "ema/unet/kernel has shape (300, 100) there, (301, 100) here"),
    (lambda: state(0).replace(params={"unet": state(0).params["unet"]}), "params/head/bias has shape (3,) there"),
    (lambda: state(0).replace(params=state(0).params | {"mllm": jnp.zeros(4)}), "params/mllm has shape none there"),
    (lambda: state(0).replace(opt_state=optax.sgd(1.0).init(state(0).params)), "opt_state/"),
])  # fmt: skip
def test_another_structure_is_refused_in_a_sentence(two, like, words):
    with pytest.raises(ValueError, match="begin in another workdir") as refused:
        restored(two, jax.eval_shape(like))
    assert words in str(refused.value) and len(str(refused.value)) < 400


def test_weights_and_config_are_read_without_the_optimizer(two):
    assert_same(checkpoint.read_weights(two), jax.device_get(state(2).params))
    assert_same(checkpoint.read_weights(two, 1, ema=True), jax.device_get(state(1).ema))
    leaf = checkpoint.read_weights(two)["unet"]["kernel"]
    assert isinstance(leaf, np.ndarray)
    assert checkpoint.read_config(two).batch_size == 4


def test_reading_names_what_is_there(two, tmp_path):
    with pytest.raises(ValueError, match="no checkpoint of step 5; there are: 1, 2"):
        checkpoint.read_weights(two, 5)
    with pytest.raises(ValueError, match="no checkpoint; there are: none"):
        checkpoint.read_config(tmp_path)
    with Checkpoints(tmp_path, config()) as checkpoints:
        checkpoints.save(1, state(1, ema=False))
    with pytest.raises(ValueError, match="no averaged weights"):
        checkpoint.read_weights(tmp_path, ema=True)
