"""Model directories: read and written as diffusers and transformers do, never half, faults named."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPVisionModel, LlamaForCausalLM

from mgie_jax.models import presets
from mgie_jax.text.train_tokenizer import save_tokenizer, train_bpe
from mgie_jax.weights import atomic, files
from mgie_jax.weights.files import load_config, load_model_dir, load_tokenizer, save_model_dir
from mgie_jax.weights.rules import to_torch
from mgie_jax.weights.tensors import ModelDirError, read_tensors

CONFIG = presets.test()


@pytest.fixture
def params(tiny_params):
    return tiny_params


@pytest.fixture
def tokenizer_dir(tiny_tokenizer_dir):
    return tiny_tokenizer_dir


@pytest.fixture
def saved(tiny_model_dir):
    return tiny_model_dir


@pytest.fixture
def copy(saved, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(saved, tmp_path / "model")


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def edit_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_there_and_back(saved, params):
    config, loaded = load_model_dir(saved)
    assert config == CONFIG
    assert_equal(loaded, params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))


def test_every_setting_survives(params, tokenizer_dir, tmp_path):
    config = dataclasses.replace(
        CONFIG,
        schedule=dataclasses.replace(CONFIG.schedule, prediction_type="v_prediction", steps_offset=0),
        sampling=dataclasses.replace(CONFIG.sampling, sampler="dpmpp_2m", guidance_scale=3.25, steps=7),
        prompt=dataclasses.replace(CONFIG.prompt, system="Hi.", model_max_length=70),
        mllm=dataclasses.replace(CONFIG.mllm, mm_vision_select_layer=-1),
    )
    save_model_dir(tmp_path / "m", config, params, tokenizer_dir)
    assert load_config(tmp_path / "m") == config


def test_half_the_bytes(params, tokenizer_dir, tmp_path):
    save_model_dir(tmp_path / "m", CONFIG, params, tokenizer_dir, dtype=jnp.bfloat16)
    assert np.asarray(read_tensors(tmp_path / "m" / "unet", "diffusion_pytorch_model")["conv_in.bias"]).dtype == (
        ml_dtypes.bfloat16
    )
    _, loaded = load_model_dir(tmp_path / "m", dtype=jnp.bfloat16)
    assert_equal(loaded, jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), params))


def test_shards(params, tokenizer_dir, tmp_path):
    save_model_dir(tmp_path / "m", CONFIG, params, tokenizer_dir, shard_bytes=60_000)
    assert len(list((tmp_path / "m" / "unet").glob("diffusion_pytorch_model-0*-of-*.safetensors"))) > 2
    assert_equal(load_model_dir(tmp_path / "m")[1], params)
    state = UNet2DConditionModel.from_pretrained(tmp_path / "m" / "unet").state_dict()
    assert_equal({key: value.numpy() for key, value in state.items()}, to_torch(params["unet"]))


def test_pytorch_reads_ours(saved, params):
    towerless = {name: tree for name, tree in params["mllm"].items() if name != "vision_tower"}
    for cls, part, tree in (
        (UNet2DConditionModel, "unet", params["unet"]),
        (AutoencoderKL, "vae", params["vae"]),
        (LlamaForCausalLM, "mllm", towerless),
        (CLIPVisionModel, "vision_tower", params["mllm"]["vision_tower"]),
    ):
        model, report = cls.from_pretrained(saved / part, output_loading_info=True)
        assert not report["missing_keys"] and not report["mismatched_keys"]
        assert all("mm_projector" in key for key in report["unexpected_keys"])
        state = {key.removeprefix("vision_model."): value for key, value in model.state_dict().items()}
        ours = {key.removeprefix("vision_model."): value for key, value in to_torch(tree).items()}
        ours = {key: value for key, value in ours.items() if "mm_projector" not in key}
        assert_equal({key: state[key].numpy() for key in state}, ours)
    scheduler = EulerAncestralDiscreteScheduler.from_pretrained(saved / "scheduler")
    assert scheduler.config.beta_end == 0.012 and scheduler.config.timestep_spacing == "linspace"
    assert CLIPImageProcessor.from_pretrained(saved / "vision_tower").crop_size["height"] == 28


def test_ours_reads_pytorchs(copy):
    """Every part that diffusers or transformers has, rewritten by them with other weights."""
    torch.manual_seed(0)
    states = {}
    for cls, part in (
        (UNet2DConditionModel, "unet"),
        (AutoencoderKL, "vae"),
        (LlamaForCausalLM, "mllm"),
        (CLIPVisionModel, "vision_tower"),
    ):
        model = cls.from_pretrained(copy / part)
        if part == "mllm":  # as LLaVA extends it
            model.model.mm_projector = torch.nn.Linear(32, 32)
            del model.config.im_patch_id
            del model.config.mm_projector_type
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        shutil.rmtree(copy / part)
        model.save_pretrained(copy / part)
        states[part] = {key: value.numpy() for key, value in model.state_dict().items()}
    scheduler = EulerAncestralDiscreteScheduler.from_pretrained(copy / "scheduler")
    scheduler.save_pretrained(copy / "scheduler")
    config, loaded = load_model_dir(copy)
    assert config == CONFIG
    assert_equal(to_torch(loaded["unet"]), states["unet"])
    assert_equal(to_torch(loaded["vae"]), states["vae"])
    tower = {key.removeprefix("vision_model."): v for key, v in to_torch(loaded["mllm"].pop("vision_tower")).items()}
    assert_equal(tower, {key.removeprefix("vision_model."): v for key, v in states["vision_tower"].items()})
    assert_equal(to_torch(loaded["mllm"]), states["mllm"])


def test_emb_defaults_to_the_last_rows(params, tokenizer_dir, tmp_path):
    without = {name: tree for name, tree in params.items() if name != "emb"}
    save_model_dir(tmp_path / "m", CONFIG, without, tokenizer_dir)
    _, loaded = load_model_dir(tmp_path / "m")
    rows = params["mllm"]["model"]["embed_tokens"]["embedding"][-8:]
    assert_equal(loaded["emb"], rows)


def test_leaves_are_placed_with_their_paths(saved, params):
    paths = []
    load_model_dir(saved, place=lambda path, array: paths.append(path) or array)
    expected = [tuple(str(key.key) for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert sorted(paths) == sorted(expected)


def test_tokenizer(saved, tokenizer_dir, tmp_path):
    prompt = load_tokenizer(saved, CONFIG)
    assert prompt.im_patch_id == CONFIG.mllm.im_patch_id
    assert prompt.encode_prompt("make it darker").count(prompt.im_patch_id) == 4
    save_tokenizer(train_bpe(["abc"], 300), tmp_path / "tokenizer")
    with pytest.raises(ModelDirError, match="does not belong to this model"):
        load_tokenizer(tmp_path, CONFIG)
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelDirError, match="no usable tokenizer"):
        load_tokenizer(tmp_path, CONFIG)


class Killed(BaseException):
    pass


def test_a_kill_at_any_write_leaves_no_model(params, tokenizer_dir, tmp_path, monkeypatch):
    """Stops before each write in turn, without the clean-up that a killed process cannot do."""
    monkeypatch.setattr(atomic.shutil, "rmtree", lambda *args, **kwargs: None)
    steps = [0]

    def counted(write):
        def call(*args, **kwargs):
            steps[0] -= 1
            if steps[0] < 0:
                raise Killed
            return write(*args, **kwargs)

        return call

    monkeypatch.setattr(files, "write_tensors", counted(files.write_tensors))
    monkeypatch.setattr(files, "copy_file", counted(files.copy_file))
    monkeypatch.setattr(atomic, "_replace", counted(atomic._replace))
    for module in (files, atomic):
        monkeypatch.setattr(module, "write_text", counted(atomic.write_text))
    target, writes = tmp_path / "model", 0
    while not target.exists():
        steps[0] = writes
        try:
            save_model_dir(target, CONFIG, params, tokenizer_dir)
        except Killed:
            assert not target.exists()
            names = [path.name for path in tmp_path.iterdir()]
            assert all(name.startswith(".model.new-") for name in names), names
            # 5 parts, 3 tokenizer files, the checksums and 8 configurations; then only the name is missing
            if writes < 5 + 3 + 1 + 8:
                for path in tmp_path.iterdir():
                    with pytest.raises(ModelDirError, match="model_index.json"):
                        load_config(path)
            for path in tmp_path.iterdir():
                path.rename(path.with_name(path.name + "-seen"))
        writes += 1
    assert writes == 5 + 3 + 1 + 8 + 1 + 1
    assert load_config(target) == CONFIG


def test_replacing_a_model(copy, params, tokenizer_dir, monkeypatch):
    with pytest.raises(ModelDirError, match="exists already"):
        save_model_dir(copy, CONFIG, params, tokenizer_dir)
    zeros = jax.tree.map(np.zeros_like, params)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_tensors", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            save_model_dir(copy, CONFIG, zeros, tokenizer_dir, overwrite=True)
    assert_equal(load_model_dir(copy)[1], params)
    assert [path.name for path in copy.parent.iterdir()] == ["model"]
    save_model_dir(copy, CONFIG, zeros, tokenizer_dir, overwrite=True)
    assert_equal(load_model_dir(copy)[1], zeros)
    assert [path.name for path in copy.parent.iterdir()] == ["model"]


def test_what_does_not_fit_is_not_written(params, tokenizer_dir, tmp_path):
    wrong = params | {"edit_head": params["edit_head"] | {"query": np.zeros((1, 9, 32), np.float32)}}
    with pytest.raises(ModelDirError, match=r"query: expected \(1, 7, 32\), found \(1, 9, 32\)"):
        save_model_dir(tmp_path / "m", CONFIG, wrong, tokenizer_dir)
    with pytest.raises(ModelDirError, match="tokenizer.json"):
        save_model_dir(tmp_path / "m", CONFIG, params, tmp_path)
    assert list(tmp_path.iterdir()) == []


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: shutil.rmtree(d), "is not a folder"),
        (lambda d: (d / "model_index.json").unlink(), "no model_index.json"),
        (lambda d: (d / "model_index.json").write_text("[]"), "model_index.json must hold a JSON object"),
        (lambda d: (d / "unet" / "config.json").write_text("{,"), r"unet/config.json is not valid JSON"),
        (lambda d: (d / "unet" / "config.json").unlink(), r"unet/config.json is missing"),
        (lambda d: shutil.rmtree(d / "vae"), r"vae/config.json is missing"),
        (
            lambda d: (d / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
            r"vae/.*safetensors is missing",
        ),
        (lambda d: truncate(d / "mllm" / "model.safetensors"), r"mllm/model.safetensors .*cut short"),
        (lambda d: (d / "edit_head" / "model.safetensors").write_bytes(b""), r"edit_head/model.safetensors"),
        (
            lambda d: edit_json(d / "unet" / "config.json", block_out_channels=[64, 64]),
            r"unet/diffusion.*shape: conv_in.weight: expected \(64, 8, 3, 3\), found \(32, 8, 3, 3\)",
        ),
        (
            lambda d: edit_json(d / "mllm" / "config.json", num_hidden_layers=3),
            r"missing: model.layers.2.input_la",
        ),
        (
            lambda d: edit_json(d / "mllm" / "config.json", num_hidden_layers=1),
            r"unexpected: model.layers.1.input_",
        ),
        (
            lambda d: edit_json(d / "mllm" / "config.json", hidden_size="big"),
            "hidden_size: expected int, found 'big'",
        ),
        (
            lambda d: edit_json(d / "mllm" / "config.json", hidden_size=64),
            "do not fit together: edit_head.llm_hidden",
        ),
        (
            lambda d: edit_json(d / "mllm" / "config.json", attention_bias=True),
            "attention_bias is True, supported is",
        ),
        (
            lambda d: edit_json(d / "unet" / "config.json", use_linear_projection=True),
            "use_linear_projection is True",
        ),
        (
            lambda d: edit_json(d / "scheduler" / "scheduler_config.json", beta_schedule="linear"),
            "beta_schedule",
        ),
        (
            lambda d: edit_json(d / "mllm" / "config.json", rope_parameters={"rope_type": "yarn"}),
            "rope_type 'yarn'",
        ),
    ],
)
def test_faults_are_named(copy, damage, message):
    damage(copy)
    with pytest.raises(ModelDirError, match=f"(?s){message}"):
        load_model_dir(copy)


def test_an_index_must_agree_with_its_shards(params, tokenizer_dir, tmp_path):
    save_model_dir(tmp_path / "m", CONFIG, params, tokenizer_dir, shard_bytes=60_000)
    folder = tmp_path / "m" / "unet"
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map=where | {"ghost.weight": where["conv_in.weight"]})
    with pytest.raises(ModelDirError, match="ghost.weight"):
        read_tensors(folder, "diffusion_pytorch_model")
    edit_json(index, weight_map=where | {"conv_in.weight": "../vae/diffusion_pytorch_model.safetensors"})
    with pytest.raises(ModelDirError, match="outside its folder"):
        read_tensors(folder, "diffusion_pytorch_model")
    edit_json(index, weight_map=where)
    (folder / where["conv_in.weight"]).unlink()
    with pytest.raises(ModelDirError, match="is missing"):
        read_tensors(folder, "diffusion_pytorch_model")
