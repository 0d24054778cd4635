"""Single-file checkpoints of latent diffusion: renamed exactly as diffusers does it, or refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import save_file

from mgie_jax.models.unet import UNetConfig
from mgie_jax.weights import ldm, ldm_keys
from mgie_jax.weights.tensors import ModelDirError, Tensor, open_tensors, read_tensors
from tests.weights.ldm_files import checkpoint, unet_shapes


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("ldm") / "sd.ckpt"
    torch.save({"state_dict": checkpoint(), "global_step": 3}, path)
    return path


def convert(path, **settings):
    return ldm.convert(open_tensors(path), str(path), **settings)


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        np.testing.assert_array_equal(np.asarray(ours[key]), tensor.numpy(), err_msg=key)


@pytest.mark.parametrize(
    "sizes, ema",
    [
        ({}, True),
        ({}, False),
        ({"mults": (1, 2, 3), "layers": 2, "attention": (0, 1), "inputs": 8, "context": 40}, False),
        ({"mults": (1, 3), "attention": (1,), "outputs": 8}, False),
    ],
)
def test_equals_diffusers_conversion(tmp_path, sizes, ema):
    tensors = checkpoint(ema=ema, **sizes)
    save_file(tensors, tmp_path / "sd.safetensors")
    model = convert(tmp_path / "sd.safetensors", ema=ema)
    levels = len(model.unet_config.block_out_channels)
    assert model.unet_config.block_out_channels == tuple(32 * mult for mult in sizes.get("mults", (1, 2)))
    assert model.unet_config.in_channels == sizes.get("inputs", 4) and model.ema == ema
    layout = {"layers_per_block": sizes.get("layers", 1), "down_block_types": ["DownEncoderBlock2D"] * 2}
    assert len(model.unet_config.down_block_types) == levels
    assert_same(model.unet, convert_ldm_unet_checkpoint(dict(tensors), layout, extract_ema=ema))
    vae = convert_ldm_vae_checkpoint(dict(tensors), layout | {"up_block_types": ["UpDecoderBlock2D"] * 2})
    assert_same(model.vae, vae)
    ldm.write(tmp_path / "out", model)
    # Built anew from the written config.json, with every key in place.
    for cls, part, theirs in ((UNet2DConditionModel, "unet", model.unet), (AutoencoderKL, "vae", vae)):
        loaded, report = cls.from_pretrained(tmp_path / "out" / part, output_loading_info=True)
        assert not any(report.values())
        assert loaded.state_dict().keys() == theirs.keys()
    scheduler = EulerAncestralDiscreteScheduler.from_pretrained(tmp_path / "out" / "scheduler")
    assert (scheduler.config.beta_start, scheduler.config.prediction_type) == (0.00085, "epsilon")


def test_averaged_weights_are_taken_where_there_are_some(file):
    tensors = open_tensors(file)
    averaged, last = tensors["model_ema.diffusion_modelout2bias"], tensors["model.diffusion_model.out.2.bias"]
    for ema, expected in ((None, averaged), (True, averaged), (False, last)):
        np.testing.assert_array_equal(np.asarray(convert(file, ema=ema).unet["conv_out.bias"]), np.asarray(expected))


def test_conv_in_is_widened_with_zeros(file, tmp_path):
    narrow, wide = convert(file), convert(file, in_channels=8)
    assert wide.unet_config.in_channels == 8 and wide.unet["conv_in.weight"].shape == (32, 8, 3, 3)
    ldm.write(tmp_path / "out", wide)
    written = np.asarray(read_tensors(tmp_path / "out" / "unet", "diffusion_pytorch_model")["conv_in.weight"])
    np.testing.assert_array_equal(written[:, :4], np.asarray(narrow.unet["conv_in.weight"]))
    assert not written[:, 4:].any()
    np.testing.assert_array_equal(wide.unet["conv_in.weight"][3:5, 2:6], written[3:5, 2:6])
    with pytest.raises(ModelDirError, match="input_blocks.0.0.weight has 4 input channels, .* become 3"):
        convert(file, in_channels=3)


def test_half_precision_stays_bit_for_bit_or_is_cast(tmp_path):
    torch.save(checkpoint(torch.float16, ema=False), tmp_path / "sd.ckpt")
    model = convert(tmp_path / "sd.ckpt")
    ldm.write(tmp_path / "kept", model)
    ldm.write(tmp_path / "wide", model, dtype=np.float32)
    for name, dtype in (("kept", np.float16), ("wide", np.float32)):
        for part, tensors in (("unet", model.unet), ("vae", model.vae)):
            written = read_tensors(tmp_path / name / part, "diffusion_pytorch_model")
            assert {tensor.dtype for tensor in written.values()} == {np.dtype(dtype)}
            for key, tensor in tensors.items():
                np.testing.assert_array_equal(np.asarray(written[key]), np.asarray(tensor))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda t: [t.pop(key) for key in list(t) if key.startswith(ldm.VAE)], "holds no VAE: .*first_stage_model"),
        (lambda t: [t.pop(key) for key in list(t) if key.startswith(ldm.UNET)], "holds no UNet: .*model.diffusion_mod"),
        (lambda t: t.pop("model_ema.diffusion_modelout2bias"), "lacks averaged .*model_ema.diffusion_modelout2bias"),
        (lambda t: t.pop(ldm.UNET + "out.2.weight"), "lacks the key 'out.2.weight'"),
        (lambda t: t.pop(ldm.VAE + "quant_conv.bias"), "the VAE is not whole.*missing: quant_conv.bias"),
        (
            lambda t: t.update({ldm.UNET + "label_emb.0.0.weight": torch.zeros(3)}),
            "unexpected: model.diffusion_model.l",
        ),
        (
            lambda t: t.update({ldm.UNET + "middle_block.1.proj_in.weight": torch.zeros(64, 64)}),
            r"shape: model.diffusion_model.middle_block.1.proj_in.weight: expected \(64, 64, 1, 1\), found \(64, 64\)",
        ),
        (lambda t: t.update({"betas": torch.linspace(1e-4, 0.02, 1000)}), "betas are not Stable Diffusion's"),
    ],
)
def test_other_networks_are_refused_by_key(tmp_path, damage, message):
    tensors = checkpoint(ema="ema" in message)
    damage(tensors)
    torch.save(tensors, tmp_path / "sd.ckpt")
    with pytest.raises(ModelDirError, match=f"(?s){message}") as caught:
        convert(tmp_path / "sd.ckpt")
    assert "sd.ckpt" in str(caught.value)


def test_asking_for_averages_that_are_not_there(tmp_path):
    torch.save(checkpoint(ema=False), tmp_path / "sd.ckpt")
    with pytest.raises(ModelDirError, match="no averaged weights.*leave --ema out"):
        convert(tmp_path / "sd.ckpt", ema=True)


def test_the_published_layout_is_recognised():
    """Stable Diffusion v1.5 and InstructPix2Pix, by shapes alone."""

    shapes = unet_shapes(320, (1, 2, 4, 4), 2, (0, 1, 2), 768, inputs=8)

    def unread(index):
        raise AssertionError("a layout is read off shapes alone")

    half = np.dtype(np.float16)
    tensors = {key: Tensor(key, Path("sd.ckpt"), shape, half, unread) for key, shape in shapes.items()}
    assert ldm_keys.unet_config(tensors) == UNetConfig()
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 859_532_484


def test_a_failure_leaves_nothing(file, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(ldm, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        ldm.write(tmp_path / "out", convert(file))
    assert list(tmp_path.iterdir()) == []


def test_configuration_is_diffusers_own(file, tmp_path):
    ldm.write(tmp_path / "out", convert(file, in_channels=8))
    fields = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    assert fields["_class_name"] == "UNet2DConditionModel" and fields["in_channels"] == 8
    assert fields["down_block_types"] == ["CrossAttnDownBlock2D", "DownBlock2D"]
    assert json.loads((tmp_path / "out" / "vae" / "config.json").read_text())["scaling_factor"] == 0.18215
