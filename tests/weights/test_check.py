"""`check`: a report of what is there, in which every fault has a name and a remedy."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgie_jax.models import presets
from mgie_jax.weights import safetensors_files
from mgie_jax.weights.atomic import SUMS
from mgie_jax.weights.check import check
from mgie_jax.weights.files import save_model_dir
from mgie_jax.weights.tensors import ModelDirError, open_tensors, write_tensors


@pytest.fixture
def copy(tiny_model_dir, tmp_path):
    return shutil.copytree(tiny_model_dir, tmp_path / "model")


def rewrite(folder, change, dtype=None):
    """`folder`'s one weights file with `change` made to {key: array}."""
    (file,) = folder.glob("*.safetensors")
    tensors = {key: np.asarray(tensor) for key, tensor in open_tensors(file).items()}
    file.unlink()
    change(tensors)
    write_tensors(folder, file.stem, tensors.items(), dtype)


def test_a_good_model(tiny_model_dir, tiny_params):
    report = check(tiny_model_dir)
    assert report.good and report.loads and report.verified is True and report.problems == ()
    assert sum(part.parameters for part in report.parts) == sum(leaf.size for leaf in jax.tree.leaves(tiny_params))
    parts = {part.name: part for part in report.parts}
    assert list(parts) == ["vision_tower", "mllm", "edit_head", "unet", "vae"]
    mllm = presets.test().mllm.llm
    assert ("model.embed_tokens.weight", (mllm.vocab_size, mllm.hidden_size), 1) in parts["mllm"].shapes
    q_proj = ("model.layers.*.self_attn.q_proj.weight", (mllm.hidden_size, mllm.hidden_size), mllm.num_hidden_layers)
    assert q_proj in parts["mllm"].shapes
    assert all(part.dtypes == {"float32": part.parameters} for part in report.parts)
    assert report.vocabulary == mllm.vocab_size
    assert report.special_tokens["<im_patch>"] == presets.test().mllm.im_patch_id
    names = {path.relative_to(tiny_model_dir).as_posix() for path in tiny_model_dir.rglob("*") if path.is_file()}
    assert {file.name for file in report.files} == names - {SUMS}
    assert {file.recorded for file in report.files} == {"matches"}
    fields = json.loads(json.dumps(report.to_json()))
    assert fields["good"] and fields["loads"] and len(fields["files"][0]["sha256"]) == 64
    text = str(report)
    assert "float32" in text and "<im_patch>" in text and "all files match" in text and "loads; good" in text


def test_no_checksums_are_not_a_fault(copy):
    (copy / SUMS).unlink()
    report = check(copy)
    assert report.good and report.loads and report.verified is None
    assert "not verified" in str(report)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("conv_in.bias"), "unet: conv_in.bias is missing; convert or download"),
        (lambda t: t.update(stray=np.zeros(3)), "unet: stray belongs to no tensor .* correct unet/config.json"),
        (lambda t: t.update({"conv_in.bias": np.zeros(9)}), r"conv_in.bias has the shape \(9,\), .*asks for \(32,\)"),
        (lambda t: t.update({"conv_in.bias": np.zeros(32, np.int8)}), "conv_in.bias is int8, expected floats"),
    ],
)
def test_every_key_that_does_not_fit_is_named(copy, change, words):
    rewrite(copy / "unet", change)
    (copy / SUMS).unlink()
    report = check(copy)
    assert not report.loads and not report.good
    assert re.search(words, "\n".join(report.problems)), report.problems
    assert len(report.problems) == 1 and "does not load" in str(report)


def test_all_faults_are_told_at_once(copy):
    rewrite(copy / "unet", lambda tensors: tensors.pop("conv_in.bias"))
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (copy / "mllm" / "config.json").write_text("{")
    (copy / "tokenizer" / "tokenizer.json").write_text("{}")
    report = check(copy)
    text = "\n".join(report.problems)
    assert "mllm/config.json is not valid JSON" in text and "vae/diffusion_pytorch_model.safetensors is missing" in text
    assert not report.loads and report.verified is False
    assert {part.name for part in report.parts if part.tensors} == {"vision_tower", "mllm", "edit_head", "unet"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_numbers_that_are_none_are_reported(copy, value, dtype):
    def spoil(tensors):
        tensors["conv_in.bias"] = tensors["conv_in.bias"].copy()
        tensors["conv_in.bias"][3:5] = value

    rewrite(copy / "unet", spoil, dtype)
    (copy / SUMS).unlink()
    report = check(copy)
    (problem,) = report.problems
    assert "unet: 2 numbers of conv_in.bias are NaN or infinite" in problem
    assert report.loads and not report.good


def test_a_changed_number_is_seen_by_its_checksum(copy):
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    report = check(copy)
    assert report.loads and report.verified is False and not report.good
    assert f"{file} differs from SHA256SUMS" in report.problems[0]
    assert [entry.name for entry in report.files if entry.recorded == "differs"] == [file.relative_to(copy).as_posix()]


def test_files_that_come_and_go_are_seen(copy):
    (copy / "README.md").write_text("a card may come and go")
    assert check(copy).good
    (copy / "vision_tower" / "preprocessor_config.json").unlink()
    (copy / "unet" / "extra.json").write_text("{}")
    report = check(copy)
    text = "\n".join(report.problems)
    assert "vision_tower/preprocessor_config.json is in SHA256SUMS and missing" in text
    assert "unet/extra.json is not in SHA256SUMS" in text
    (copy / SUMS).write_text("who knows\n")
    assert "SHA256SUMS is damaged at 'who knows'" in "\n".join(check(copy).problems)


def test_no_more_than_a_block_is_read_at_a_time(tiny_params, tiny_tokenizer_dir, tmp_path, monkeypatch):
    sizes, read = [], safetensors_files._File.read

    def counted(self, start, into):
        sizes.append(into.nbytes)
        read(self, start, into)

    monkeypatch.setattr(safetensors_files._File, "read", counted)
    monkeypatch.setattr(safetensors_files, "BLOCK", 2**13)
    save_model_dir(tmp_path / "m", presets.test(), tiny_params, tiny_tokenizer_dir, shard_bytes=100_000)
    progress = []
    report = check(tmp_path / "m", progress.append)
    tensors = sum(part.nbytes for part in report.parts)
    assert report.good and max(sizes) <= 2**14, "a block, or a header"
    assert tensors <= sum(sizes)
    assert sum(progress) == tensors + sum(file.nbytes for file in report.files)


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ModelDirError, match="is not a folder"):
        check(tmp_path / "nothing")
    report = check(tmp_path)
    assert not report.loads and "no model_index.json" in report.problems[0]
