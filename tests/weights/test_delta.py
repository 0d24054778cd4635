"""A published delta on its base: the very sums of torch, whatever the dtypes, or a clear refusal."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mgie_jax.weights.delta import apply_delta, write
from mgie_jax.weights.tensor import Tensor
from mgie_jax.weights.tensors import ModelDirError, open_tensors, read_tensors
from tests.weights.official_files import write_sentencepiece

EXTENDED = ("model.embed_tokens.weight", "lm_head.weight")
INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"


def llama(folder, dtype, rows=40):
    """A random LLaMA, as transformers writes it."""
    torch.manual_seed(rows)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=rows, **sizes)).to(dtype)
    model.save_pretrained(folder)
    return model.state_dict()


def apply_with_torch(base, delta):
    """LLaVA's semantics: both in the delta's dtype, in place."""
    out = {}
    for key, tensor in delta.items():
        out[key] = tensor.clone()
        if key in base:
            rows = base[key].to(tensor.dtype)
            out[key][: len(rows)] += rows
    return out


@pytest.fixture
def folders(tmp_path):
    """LLaMA, and a delta with three more rows, a projector, a buffer of old transformers and a tokenizer."""
    base = llama(tmp_path / "base", torch.float32)
    delta = llama(tmp_path / "delta", torch.float16, rows=43)
    delta |= {"model.mm_projector.weight": torch.randn(16, 8).half(), "model.mm_projector.bias": torch.randn(16).half()}
    (tmp_path / "delta" / "model.safetensors").unlink()
    torch.save(delta | {INV_FREQ: torch.ones(4)}, tmp_path / "delta" / "pytorch_model.bin")
    write_sentencepiece(tmp_path / "delta" / "tokenizer.model", 280)
    return tmp_path, base, delta


def apply(folder):
    where = f"{folder / 'base'} and {folder / 'delta'}"
    return apply_delta(open_tensors(folder / "base"), open_tensors(folder / "delta"), where)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_equals_torch_bit_for_bit(folders, dtype):
    folder, base, delta = folders
    delta = {key: tensor.to(dtype) for key, tensor in delta.items()}
    torch.save(delta, folder / "delta" / "pytorch_model.bin")
    write(folder / "out", apply(folder), folder / "delta")
    written, expected = read_tensors(folder / "out", "model"), apply_with_torch(base, delta)
    assert written.keys() == expected.keys()
    for key, tensor in expected.items():
        ours = np.asarray(written[key])
        assert ours.dtype.name == str(dtype).removeprefix("torch.")
        np.testing.assert_array_equal(ours.astype(np.float32), tensor.float().numpy(), err_msg=key)


def test_the_result_is_a_folder_of_transformers(folders):
    folder, base, delta = folders
    write(folder / "out", apply(folder), folder / "delta", dtype="bfloat16")
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.model"}
    assert json.loads((folder / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    model = LlamaForCausalLM.from_pretrained(folder / "out")
    expected = apply_with_torch(base, delta)["lm_head.weight"].bfloat16()
    assert torch.equal(model.lm_head.weight, expected)


def test_rows_are_summed_wherever_they_are_read(folders):
    """The writer reads blocks of rows: within the base, across its end, and beyond it."""
    folder, base, delta = folders
    sums, expected = apply(folder), apply_with_torch(base, delta)
    for key in EXTENDED:
        for rows in (slice(0, 5), slice(30, 43), slice(38, 41), slice(40, 43), slice(41, 42), slice(5, 5)):
            np.testing.assert_array_equal(sums[key][rows, 3:9], expected[key][rows, 3:9].numpy())


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda b, d: b.pop("model.norm.weight"), r"only in the delta: model.norm.weight \(16,\)"),
        (lambda b, d: d.pop("model.norm.weight"), r"only in the base: model.norm.weight \(16,\)"),
        (lambda b, d: b.update({"lm_head.weight": torch.ones(44, 16)}), r"lm_head.weight: base \(44, 16\), delta \(43"),
        (lambda b, d: b.update({"lm_head.weight": torch.ones(40, 15)}), r"lm_head.weight: base \(40, 15\), delta \(43"),
        (
            lambda b, d: b.update({"model.norm.weight": torch.ones(16).byte()}),
            "model.norm.weight: base uint8, delta flo",
        ),
        (lambda b, d: d.update({"model.norm.weight": torch.ones(17)}), r"model.norm.weight: base \(16,\), delta \(17,"),
    ],
)
def test_what_does_not_belong_together(folders, damage, message):
    folder, base, delta = folders
    base, delta = dict(base), dict(delta)
    damage(base, delta)
    save_file({key: tensor.contiguous() for key, tensor in base.items()}, folder / "base" / "model.safetensors")
    torch.save(delta, folder / "delta" / "pytorch_model.bin")
    with pytest.raises(ModelDirError, match=f"(?s)the delta was not taken from this base.*{message}"):
        apply(folder)


def test_a_base_too_large_for_the_deltas_dtype_is_named(folders):
    folder, base, _ = folders
    base["model.norm.weight"] = torch.full((16,), 1e6)
    save_file({key: tensor.contiguous() for key, tensor in base.items()}, folder / "base" / "model.safetensors")
    with pytest.raises(ModelDirError, match="base/model.safetensors: model.norm.weight: 1e\\+06 is beyond float16"):
        write(folder / "out", apply(folder), folder / "delta")
    assert not (folder / "out").exists()


def test_scalars_are_summed_too():
    value = np.float16(1.5)

    def scalar():
        return Tensor("model.scale", Path("f"), (), np.dtype(np.float16), lambda index: np.array(value))

    total = apply_delta({"model.scale": scalar()}, {"model.scale": scalar()}, "a and b")["model.scale"]
    assert np.asarray(total) == 3.0 and np.asarray(total).dtype == np.float16
