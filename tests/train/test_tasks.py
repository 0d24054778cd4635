"""From config files to tasks: what is trained, where it is put, and what is refused."""

import re
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import mgie_jax
from mgie_jax.cli.train import read_config
from mgie_jax.data.generate import KINDS
from mgie_jax.data.order import Found, Unusable
from mgie_jax.models import presets
from mgie_jax.models.mgie import MGIE
from mgie_jax.sharding import make_mesh, param_sharding
from mgie_jax.train import start, tasks
from mgie_jax.train.config import default_config
from mgie_jax.train.start import load_start, write_fresh
from mgie_jax.train.state import split_params
from mgie_jax.weights.files import load_model_dir

ROOT = Path(mgie_jax.__file__).parents[1]
FILES = ["default_vae.py", "default_vae.py:decoder", "default_mllm.py", "default.py:64", "default.py:128",
         "default.py:64-2", "default.py:128-2", "default.py:128-3", "default.py:128-4", "default.py:128-5",
         "default.py:128-6", "default.py:128-9", "mgie_7b.py", "mgie_7b.py:released", "test.py:vae", "test.py:mllm",
         "test.py:joint"]  # fmt: skip
JOINT = ("mllm", "edit_head", "unet", "vae")


@cache
def shapes(name):
    return MGIE(presets.PRESETS[name]()).shapes()


def config(**changes):
    c = default_config()
    c.update({"photos": "photos", **changes})
    return c


@pytest.mark.skipif(not (ROOT / "configs").is_dir(), reason="not a source tree")
@pytest.mark.parametrize("file", FILES)
def test_a_config_file_has_known_keys_and_possible_values(file):
    c = read_config(f"{ROOT}/configs/{file}", ["--config.photos=photos", "--config.mesh=(1, 2, -1)"])
    tasks.check(c)
    assert set(c) == set(default_config()) and set(c.weights) <= set(KINDS)
    names = {"vae": {"vae"}, "mllm": {"mllm"}, "joint": set(JOINT)}[c.stage]
    assert set(c.learning_rate) <= {"default", "mllm", *names}
    split_params(shapes(c.model), tasks.trainable(c))  # every pattern matches
    assert c.mesh == (1, 2, -1)


@pytest.mark.skipif(not (ROOT / "configs").is_dir(), reason="not a source tree")
def test_the_recipes():
    paper, released = (read_config(f"{ROOT}/configs/mgie_7b.py{which}", []) for which in ("", ":released"))
    assert (paper.batch_size, paper.learning_rate.to_dict()) == (128, {"unet": 1e-4, "default": 5e-4})
    assert (released.batch_size, released.learning_rate.to_dict()) == (32, {"default": 5e-4})
    for c in (paper, released):
        assert (c.image_size, c.max_tokens, c.weight_decay, c.warmup, c.mode) == (256, 512, 0.0, 0.03, "E2E")
        assert (c.compute_dtype, c.frozen_dtype, c.steps * c.batch_size) == ("bfloat16", "bfloat16", 40_000_000)
    with pytest.raises(ValueError, match="paper or released"):
        read_config(f"{ROOT}/configs/mgie_7b.py:reviewed", [])


@pytest.mark.parametrize(
    ("mode", "trained", "frozen"),
    [("E2E", {"mllm/lm_head/kernel", "mllm/model/embed_tokens/embedding", "edit_head/query", "unet/conv_in/kernel"},
      {"mllm/model/norm/scale", "mllm/model/mm_projector/kernel"}),
     ("FT", {"edit_head/query", "unet/conv_in/kernel"}, {"mllm/lm_head/kernel", "mllm/model/embed_tokens/embedding"}),
     ("FZ", {"edit_head/query"}, {"unet/conv_in/kernel", "mllm/lm_head/kernel"})],
)  # fmt: skip
def test_modes(mode, trained, frozen):
    params, rest = split_params(shapes("test"), tasks.trainable(config(mode=mode)))
    params, rest = (set(flatten_dict(tree, sep="/")) for tree in (params, rest))
    assert trained <= params and frozen <= rest and not any(path.startswith("vae/") for path in params)
    assert not any("vision_tower" in path for path in params)


def test_trainable_stands_above_the_mode():
    assert tasks.trainable(config(mode="FZ", trainable=("unet/",))) == ("unet/",)
    assert tasks.trainable(config(stage="mllm")) == ("mllm/",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage": "third"}, "config.stage is 'third'; choose one of vae, mllm, joint"),
        ({"mode": "LGIE"}, "config.mode is 'LGIE'; choose one of E2E, FT, FZ"),
        ({"remat": "all"}, "config.remat is 'all'; .*none, blocks, dots"),
        ({"compute_dtype": "float16"}, "config.compute_dtype"),
        ({"frozen_dtype": "int8"}, "config.frozen_dtype"),
        ({"crop": "middle"}, "config.crop is 'middle'; choose one of center, random"),
        ({"on_nonfinite": "ignore"}, "config.on_nonfinite"),
        ({"accumulate": 0}, "config.accumulate is 0"),
        ({"photos": ""}, "config.data and config.photos are empty.*mgie data"),
        ({"stage": "vae", "data": "magicbrush"}, "autoencoder trains on config.photos"),
        ({"whiten": True, "trainable": ("unet/",)}, "config.whiten"),
    ],
)
def test_impossible_configs_are_refused_before_anything_happens(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        tasks.train(config(**changes), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_config_that_lacks_keys_is_told_where_they_are():
    c = config()
    del c["remat"], c["mesh"]
    with pytest.raises(ValueError, match="the config has no mesh, remat; begin it with .*default_config"):
        tasks.check(c)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 6, "accumulate": 4}, "config.batch_size is 6: it must divide by 4"),
        ({"mesh": (3, 1, 1)}, "3 does not make 1 devices"),
        ({"model": "huge"}, "config.model is 'huge'"),
        ({"init": "/nowhere"}, "/nowhere"),
        ({"data": "/nowhere"}, "/nowhere"),
    ],
)
def test_what_does_not_fit_the_machine_or_is_not_there(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        tasks.train(config(**changes), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_start_lies_on_the_mesh_in_the_dtypes_of_its_training(tiny_model_dir):
    mesh, patterns = make_mesh((1, 1, 1), jax.devices()[:1]), tasks.MODES["E2E"]
    begun = load_start(tiny_model_dir, JOINT, patterns, mesh, "bfloat16")
    _, saved = load_model_dir(tiny_model_dir)
    assert set(begun.params) == set(JOINT)
    for path, leaf in flatten_dict(begun.params, sep="/").items():
        trained = any(re.match(pattern, path) for pattern in patterns)
        assert leaf.dtype == ("float32" if trained else "bfloat16")
        assert leaf.sharding == param_sharding(mesh, path.split("/"), leaf.shape)
        want = flatten_dict(saved, sep="/")[path]
        np.testing.assert_array_equal(leaf, want if trained else want.astype("bfloat16"))
    assert len(begun.tokenizer.img_ids) == 8


def test_a_stage_reads_only_its_parts(tiny_model_dir):
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    begun = load_start(tiny_model_dir, ("vae",), ("vae/",), mesh, "bfloat16")
    assert set(begun.params) == {"vae"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(begun.params)} == {"float32"}


def test_a_fresh_model_is_made_once_and_kept(tmp_path, monkeypatch):
    # The networks' own initialisation compiles for minutes; where it puts what is the question here.
    def init(model, key):
        leaves, tree = jax.tree.flatten(shapes("test"))
        return tree.unflatten([jax.numpy.full(leaf.shape, i % 7, leaf.dtype) for i, leaf in enumerate(leaves)])

    model, mesh, texts = presets.test(), make_mesh((1, 1, 1), jax.devices()[:1]), lambda: ["a photo"] * 9
    monkeypatch.setattr(MGIE, "shapes", lambda self: shapes("test"))
    monkeypatch.setattr(MGIE, "init", init)
    path, c = tmp_path / "w" / "init", config(frozen_dtype="bfloat16", model="test")
    write_fresh(path, model, c, ("unet/",), mesh, texts)
    begun = load_start(path, ("unet", "vae"), ("unet/",), mesh, "bfloat16")
    for name, part in begun.params.items():
        assert {leaf.dtype.name for leaf in jax.tree.leaves(part)} == {"float32" if name == "unet" else "bfloat16"}
    before = (path / "SHA256SUMS").read_bytes()
    write_fresh(path, model, c, ("unet/",), mesh, lambda: pytest.fail("it is there already"))
    assert (path / "SHA256SUMS").read_bytes() == before
    with pytest.raises(ValueError, match="begin in another workdir"):
        write_fresh(path, presets.default(), c, ("unet/",), mesh, texts)


def test_the_tokenizer_learns_from_what_is_usable():
    class HalfBroken:
        def find(self, place, attempt=0):
            if place % 2:
                raise Unusable(str(place), "broken")
            return Found(str(place), f"brighter {place % 4}", "It becomes brighter.", None)

        def check_size(self, size):
            pass

    texts = start.tokenizer_texts(HalfBroken(), presets.test())
    assert {"brighter 0", "brighter 2", "It becomes brighter."} <= set(texts) and "brighter 1" not in texts
