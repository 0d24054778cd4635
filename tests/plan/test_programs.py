"""What is planned is what runs: the same compiled functions, called with arguments of the same shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mgie_jax import cli, loading
from mgie_jax import programs as running
from mgie_jax.cli.train import read_config
from mgie_jax.data import ask
from mgie_jax.models import presets
from mgie_jax.models.mgie import MGIE
from mgie_jax.models.t5 import T5Config
from mgie_jax.plan.programs import SUMMARIZERS, programs
from mgie_jax.sharding import make_mesh
from mgie_jax.train import loop, tasks


class Called(Exception):
    """In place of a step: (arguments, keyword arguments)."""


@pytest.fixture(scope="module")
def mesh():
    return make_mesh((1, 1, 1))


@pytest.fixture
def config(tiny_model_dir):
    def read(**values):
        values = {"init": tiny_model_dir, **values}
        return read_config("configs/test.py", [f"--config.{name}={value}" for name, value in values.items()])

    return read


def shapes(tree) -> list:
    """Of arrays alone: a real call also has numbers, and trees of other kinds."""
    return [(jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_editing(config, mesh, tiny_model_dir, monkeypatch, quantize):
    called = {}

    def record(name):
        jitted = getattr(running, name)

        def call(*args, **static):
            called.setdefault(name, []).append((args, static))
            return jitted(*args, **static)

        return call

    for name in ("write", "guide", "denoise", "decode"):
        monkeypatch.setattr(running, name, record(name))
    photo = Image.fromarray(np.zeros((32, 32, 3), np.uint8))
    editor = loading.load(tiny_model_dir, mesh=(1, 1, 1), quantize=quantize)
    editor.edit(photo, "the photo is dark and cool, flat. " * 4)
    monkeypatch.undo()
    planned = programs(config(), "edit", mesh, quantize=quantize)
    assert [program.name for program in planned] == list(called)
    for program in planned:
        (model, *arguments), static = called[program.name][0]
        assert program.jitted is getattr(running, program.name)
        assert len(called[program.name]) == program.runs
        assert program.leading == (model,) and program.static.keys() == static.keys()
        assert shapes(list(program.arguments.values())) == shapes(arguments)


@pytest.mark.parametrize(
    "values", [{}, {"stage": "mllm"}, {"mode": "FZ", "ema_decay": 0.9, "frozen_dtype": "bfloat16"}]
)
def test_training(config, mesh, tmp_path, monkeypatch, values):
    def make_step(*args, **kwargs):
        def step(*arguments):
            raise Called(*arguments)

        return step

    photos = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for i in range(12):
        (tmp_path / "source").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (150, 150, 3), np.uint8)).save(tmp_path / "source" / f"{i}.png")
    assert cli.main(["data", "photos", str(photos), str(tmp_path / "source")]) == 0
    monkeypatch.setattr(loop, "make_step", make_step)
    asked = config(photos=photos, **values)
    with pytest.raises(Called) as called:
        tasks.train(asked, tmp_path / "work")
    (program,) = programs(asked, "train", mesh)
    assert program.examples == asked.batch_size and program.model_flops > 0
    arguments = called.value.args
    assert list(program.arguments) == ["state", "frozen", "batch", "key"]
    for mine, real in zip(program.arguments.values(), arguments, strict=True):
        assert shapes(mine) == shapes(real)
        assert jax.tree.structure(mine) == jax.tree.structure(real)


def test_preparing(config, mesh, monkeypatch):
    small = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2)
    monkeypatch.setitem(SUMMARIZERS, "test", lambda: small)
    asked = read_config("configs/test.py", [])
    answer, summarize = programs(asked, "prepare", mesh, batch=2)
    assert answer.jitted is ask.answer and summarize.jitted is ask.summary
    tokens, lengths = answer.shapes()
    assert tokens.shape == (2, ask.MAX_NEW_TOKENS) and lengths.shape == (2,)
    assert summarize.shapes().tokens.shape == (2, 63)
    assert [program.name for program in programs(config(), "prepare", mesh)] == ["answer"]


def test_the_full_size_is_only_shapes(mesh):
    (program,) = programs(read_config("configs/mgie_7b.py", []), "train", mesh, batch=32)
    count = sum(x.size for x in jax.tree.leaves((program.arguments["state"].params, program.arguments["frozen"])))
    assert count == sum(x.size for x in jax.tree.leaves(MGIE(presets.mgie_7b()).shapes()))
    assert program.examples == 32
    assert {x.dtype.name for x in jax.tree.leaves(program.arguments["frozen"])} == {"bfloat16"}


@pytest.mark.parametrize(
    "mode, batch, values, message",
    [
        ("draw", None, {}, "choose one of train, edit, prepare"),
        ("edit", 0, {}, "at least 1"),
        ("train", 7, {"accumulate": 2}, "must divide by 2"),
        ("train", None, {"stage": "vae"}, "one device"),
    ],
)
def test_what_cannot_be_planned(config, mesh, mode, batch, values, message):
    with pytest.raises(ValueError, match=message):
        programs(config(**values), mode, mesh, batch=batch)


@pytest.mark.parametrize("mode, quantize, message", [("train", "int8", "only an edit"), ("edit", "int3", "choose one")])
def test_what_cannot_be_quantized(config, mesh, mode, quantize, message):
    with pytest.raises(ValueError, match=message):
        programs(config(), mode, mesh, quantize=quantize)
