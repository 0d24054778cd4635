"""The released files: put together into one model, taken apart again, and nothing changed on the way."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPVisionModel, PreTrainedTokenizerFast

from mgie_jax.models import presets
from mgie_jax.text.prompt import PromptConfig
from mgie_jax.text.train_tokenizer import save_tokenizer
from mgie_jax.weights.files import load_model_dir, load_tokenizer, write_model_dir
from mgie_jax.weights.official import from_official, to_official, write_official
from mgie_jax.weights.tensors import ModelDirError
from tests.weights import official_files

CONFIG = dataclasses.replace(
    presets.test(),
    prompt=PromptConfig(model_max_length=260),
    sampling=presets.SamplingConfig(resolution=32),
)
NAMES = ("llava", "mgie", "clip", "diffusion")


@pytest.fixture(scope="module")
def published(tmp_path_factory, tiny_model_dir):
    folder = tmp_path_factory.mktemp("published")
    official_files.write_all(folder, tiny_model_dir)
    return folder


@pytest.fixture
def copy(published, tmp_path):
    """The folders, for a test to damage."""
    return shutil.copytree(published, tmp_path / "published")


def sources(folder, **others):
    return {name: folder / name for name in NAMES} | {"nhead": 2} | others


def write(path, made, **settings):
    save_tokenizer(made.tokenizer, path.parent / "tokenizer")
    parts = {name: part.items() for name, part in made.parts.items()}
    write_model_dir(path, made.config, parts, path.parent / "tokenizer", **settings)


def edit_torch(path, change):
    tensors = torch.load(path)
    change(tensors)
    torch.save(tensors, path)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_published_files_make_the_model(published, tiny_params, tmp_path):
    made = from_official(**sources(published))
    assert made.config == CONFIG
    write(tmp_path / "model", made)
    config, params = load_model_dir(tmp_path / "model")
    assert config == CONFIG
    assert_equal(params, tiny_params)
    tokenizer = load_tokenizer(tmp_path / "model", config)
    assert (tokenizer.im_patch_id, tokenizer.img_ids) == (309, tuple(range(312, 320)))
    assert tokenizer.pad_id == 0 and tokenizer.eos_id == 2
    ids = tokenizer.encode_prompt("make it warmer")
    assert ids[0] == 1 and ids.count(309) == 4
    assert tokenizer.tokenizer.decode(ids, skip_special_tokens=True).endswith(
        "USER: what will this image be like if 'make it warmer'\n ASSISTANT:"
    )


def test_and_the_model_makes_the_published_files(published, tmp_path):
    """Torch, ours, torch: the same keys, dtypes and bits, whatever the dtype was."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        folder = tmp_path / str(dtype)
        folder.mkdir()
        for name in ("mllm.pt", "unet.pt"):
            tensors = torch.load(published / "mgie" / name)
            torch.save({key: value.to(dtype) for key, value in tensors.items()}, folder / name)
        write(folder / "model", from_official(**sources(published, mgie=folder)))
        write_official(folder / "back", to_official(folder / "model"))
        for name in ("mllm.pt", "unet.pt"):
            there, back = torch.load(folder / name), torch.load(folder / "back" / name)
            assert there.keys() == back.keys()
            for key, tensor in there.items():
                assert back[key].dtype == dtype
                assert torch.equal(back[key], tensor), key


def test_released_notebook_loads_what_we_write(published, tiny_model_dir, tmp_path):
    """LLaVA with its rows resized and an edit head beside it; `strict=False`, as the notebook has it."""
    from diffusers import UNet2DConditionModel
    from transformers import LlamaForCausalLM

    write_official(tmp_path / "pt", to_official(tiny_model_dir), dtype=np.float16)
    checkpoint = torch.load(tmp_path / "pt" / "mllm.pt")
    model = LlamaForCausalLM.from_pretrained(tiny_model_dir / "mllm")
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    report = model.load_state_dict(checkpoint, strict=False)
    assert all(key == "emb" or key.startswith("edit_head.") for key in report.unexpected_keys)
    assert model.model.embed_tokens.weight.any() and checkpoint["emb"].shape == (8, 32)
    assert {tensor.dtype for tensor in checkpoint.values()} == {torch.float16}
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(tiny_model_dir / "unet"))
    unet.load_state_dict(torch.load(tmp_path / "pt" / "unet.pt"))


def test_a_snapshot_of_the_trainer(published, tiny_model_dir, tiny_params, tmp_path):
    states = official_files.read(tiny_model_dir)
    official_files.write_snapshot(tmp_path / "snapshot", states)
    made = from_official(**sources(published, mgie=tmp_path / "snapshot"))
    write(tmp_path / "model", made)
    rows = tiny_params["mllm"]["model"]["embed_tokens"]["embedding"][-8:]
    assert_equal(load_model_dir(tmp_path / "model")[1], tiny_params | {"emb": rows})
    # With a configuration and a tokenizer of its own it needs no LLaVA.
    for name in ("config.json", "tokenizer.model", "added_tokens.json", "tokenizer_config.json"):
        shutil.copyfile(published / "llava" / name, tmp_path / "snapshot" / name)
    again = from_official(**sources(published, mgie=tmp_path / "snapshot", llava=None))
    assert again.config == made.config and again.parts.keys() == made.parts.keys()
    # A VAE is taken from Stable Diffusion where the snapshot has none.
    official_files.write_snapshot(tmp_path / "without", states | {"vae": {}})
    other = from_official(**sources(published, mgie=tmp_path / "without"))
    assert_equal(*({key: np.asarray(t) for key, t in m.parts["vae"].items()} for m in (other, made)))


def test_emb_is_the_last_rows_where_absent_and_may_be_a_batch_of_one(copy, tiny_params):
    def emb():
        return np.asarray(from_official(**sources(copy)).parts["edit_head"]["emb"])

    edit_torch(copy / "mgie" / "mllm.pt", lambda t: t.update(emb=t["emb"][None]))
    np.testing.assert_array_equal(emb(), tiny_params["emb"])
    edit_torch(copy / "mgie" / "mllm.pt", lambda t: t.pop("emb"))
    np.testing.assert_array_equal(emb(), tiny_params["mllm"]["model"]["embed_tokens"]["embedding"][-8:])


def test_other_forms_of_the_same(copy, tiny_model_dir, tiny_params, tmp_path):
    """A UNet under `unet.`, a tokenizer without LLaVA's tokens, a tokenizer.json, CLIP's tower alone."""
    tensors = torch.load(copy / "mgie" / "unet.pt")
    torch.save({f"unet.{key}": value for key, value in tensors.items()}, copy / "mgie" / "unet.pt")
    (copy / "llava" / "added_tokens.json").write_text("{}")
    shutil.rmtree(copy / "clip")
    CLIPVisionModel.from_pretrained(tiny_model_dir / "vision_tower").save_pretrained(copy / "clip")
    made = from_official(**sources(copy))
    assert made.config == CONFIG
    write(tmp_path / "model", made)
    assert_equal(load_model_dir(tmp_path / "model")[1], tiny_params)
    for name in ("tokenizer.model", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"):
        (copy / "llava" / name).unlink()
    save_tokenizer(made.tokenizer, copy / "llava")
    again = from_official(**sources(copy))
    assert isinstance(again.tokenizer, PreTrainedTokenizerFast)
    assert again.tokenizer.get_vocab() == made.tokenizer.get_vocab()


def test_llava_1_5(copy, tmp_path):
    """Its two-layer projector is read, the vision tower it carries along is not."""
    added = {f"model.mm_projector.{i}.{name}": torch.randn(32, 32)[0 if name == "bias" else ...] for i in (0, 2)
             for name in ("weight", "bias")}  # fmt: skip
    added["model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight"] = torch.randn(7)
    shards = sorted((copy / "llava").glob("*.bin"))
    for path in shards:
        edit_torch(path, lambda t: [t.pop(key) for key in list(t) if "mm_projector" in key])
    edit_torch(shards[0], lambda t: t.update(added))
    (copy / "llava" / "pytorch_model.bin.index.json").unlink()
    made = from_official(**sources(copy))
    assert made.config.mllm.mm_projector_type == "mlp2x_gelu"
    write(tmp_path / "model", made)
    config, params = load_model_dir(tmp_path / "model")
    assert config == made.config
    kernel = params["mllm"]["model"]["mm_projector"]["2"]["kernel"]
    np.testing.assert_array_equal(kernel, added["model.mm_projector.2.weight"].numpy().T)


def test_dtypes_may_differ_and_stay(copy, tmp_path):
    edit_torch(copy / "mgie" / "mllm.pt", lambda t: t.update({key: value.half() for key, value in t.items()}))
    edit_torch(copy / "mgie" / "unet.pt", lambda t: t.update({key: value.bfloat16() for key, value in t.items()}))
    made = from_official(**sources(copy))
    write(tmp_path / "kept", made)
    files = to_official(tmp_path / "kept")
    assert {t.dtype.name for t in files["mllm.pt"].values()} == {"float16"}
    assert {t.dtype.name for t in files["unet.pt"].values()} == {"bfloat16"}
    write(tmp_path / "cast", made, dtype=jnp.float32)
    assert {t.dtype.name for t in to_official(tmp_path / "cast")["unet.pt"].values()} == {"float32"}


def edit_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda d: (d / "mgie" / "unet.pt").unlink(), "mgie/unet.pt is missing"),
        (lambda d: (d / "mgie" / "mllm.pt").unlink(), "mgie/mllm.pt is missing"),
        (lambda d: [p.unlink() for p in (d / "mgie").iterdir()], "mgie has neither mllm.pt and unet.pt nor a snap"),
        (
            lambda d: edit_torch(d / "mgie" / "mllm.pt", lambda t: t.pop("edit_head.query")),
            "mgie/mllm.pt lacks edit_head.query",
        ),
        (
            lambda d: edit_torch(d / "mgie" / "mllm.pt", lambda t: t.pop("edit_head.mapper.encoder.norm.bias")),
            "mgie/mllm.pt: .*missing: mapper.encoder.norm.bias",
        ),
        (lambda d: edit_torch(d / "mgie" / "mllm.pt", lambda t: t.pop("lm_head.weight")), "mllm.pt lacks lm_head.weig"),
        (
            lambda d: edit_torch(d / "mgie" / "mllm.pt", lambda t: t.update(step=torch.zeros(1))),
            "mllm.pt holds step, expected only",
        ),
        (
            lambda d: edit_torch(d / "mgie" / "mllm.pt", lambda t: t.update(emb=t["emb"][:7])),
            r"mllm.pt: .*shape: emb: expected \(8, 32\), found \(7, 32\)",
        ),
        (
            lambda d: edit_torch(d / "mgie" / "mllm.pt", lambda t: t.update({"edit_head.query": torch.zeros(3)})),
            r"mllm.pt.*edit_head.query.*\(3,\)",
        ),
        (
            lambda d: edit_torch(d / "mgie" / "unet.pt", lambda t: t.pop("mid_block.resnets.0.conv1.bias")),
            "mgie/unet.pt: .*missing: mid_block.resnets.0.conv1.bias",
        ),
        (
            lambda d: edit_torch(d / "mgie" / "unet.pt", lambda t: t.update({"conv_in.weight": torch.ones(4)})),
            "unet.pt: conv_in.weight has the shape .4,., expected 4 dimensions",
        ),
        (lambda d: (d / "llava" / "config.json").unlink(), "llava/config.json is missing"),
        (lambda d: (d / "llava" / "tokenizer.model").unlink(), "llava holds neither tokenizer.json nor tokenizer.mo"),
        (lambda d: (d / "llava" / "tokenizer.model").write_bytes(b"\0nonsense"), "llava holds no usable tokenizer"),
        (lambda d: (d / "llava" / "pytorch_model-00002-of-00002.bin").unlink(), "00002-of-00002.bin is missing"),
        (
            lambda d: edit_json(d / "llava" / "added_tokens.json", **{"<pad>": 312}),
            "tokenizer has 321 entries .* embedding 320 rows",
        ),
        (
            lambda d: edit_json(d / "llava" / "config.json", mm_vision_tower="openai/clip-vit-large-patch14-336"),
            "clip sees 28 px in patches of 14, LLaVA was trained with openai/clip-vit-large-patch14-336",
        ),
        (
            lambda d: edit_json(d / "llava" / "config.json", num_hidden_layers=3),
            "llava with mllm.pt: .*missing: model.layers.2.",
        ),
        (lambda d: (d / "clip" / "model.safetensors").write_bytes(b"cut"), "clip/model.safetensors"),
        (lambda d: shutil.rmtree(d / "diffusion" / "vae"), "diffusion/vae/config.json is missing"),
        (lambda d: shutil.rmtree(d / "diffusion" / "scheduler"), "scheduler/scheduler_config.json is missing"),
        (
            lambda d: edit_json(d / "diffusion" / "unet" / "config.json", use_linear_projection=True),
            "unet/config.json describes another network: use_linear_projection",
        ),
    ],
)  # fmt: skip
def test_faults_are_named(copy, damage, message):
    damage(copy)
    with pytest.raises(ModelDirError, match=f"(?s){message}"):
        from_official(**sources(copy))


def test_a_plain_llama_is_no_llava(copy):
    for path in (copy / "llava").glob("*.bin"):
        edit_torch(path, lambda t: [t.pop(key) for key in list(t) if "mm_projector" in key])
    (copy / "llava" / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(ModelDirError, match="llava lacks model.mm_projector.weight.* it is no LLaVA"):
        from_official(**sources(copy))
    with pytest.raises(ModelDirError, match="mllm.pt holds no layers of the language model; give LLaVA's folder"):
        from_official(**sources(copy, llava=None))


def test_tokenizer_model_without_sentencepiece(copy, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelDirError, match="tokenizer.model needs sentencepiece: pip install"):
        from_official(**sources(copy))
