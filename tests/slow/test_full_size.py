"""Every network at its published width against transformers, diffusers and torch, in float32.

Weights are random: each library's own initialisation. LLaMA and T5 have two layers of each kind, the others all
theirs. Below 8 GiB of memory, because a tensor leaves PyTorch when it arrives here.
"""

import dataclasses
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from mgie_jax.diffusion.schedule import ScheduleConfig
from mgie_jax.models import presets
from mgie_jax.models.clip import CLIPVisionModel
from mgie_jax.models.edit_head import EditHead
from mgie_jax.models.llama import LlamaForCausalLM, text_positions
from mgie_jax.models.t5 import T5ForConditionalGeneration
from mgie_jax.models.unet import UNet2DConditionModel
from mgie_jax.models.vae import AutoencoderKL
from mgie_jax.weights import tables
from mgie_jax.weights.model_config import diffusion_files
from mgie_jax.weights.rules import from_torch
from mgie_jax.weights.tensors import Tensor
from tests.parity.carry import array, relative_error, tensor
from tests.parity.test_edit_head import TorchEditHead

pytestmark = [pytest.mark.parity, pytest.mark.slow]

CONFIG = presets.mgie_7b()


def built(make, *args, **kwargs) -> torch.nn.Module:
    """The module, with noise on its vectors: unit norms and zero biases would hide mistakes."""
    torch.manual_seed(0)
    module = make(*args, **kwargs).eval().requires_grad_(False)
    for value in module.parameters():
        if value.ndim == 1:
            value.add_(0.1 * torch.randn_like(value))
    return module


def moved(theirs: torch.nn.Module, ours, *inputs, table=tables.PLAIN) -> dict:
    """`theirs`' weights for `ours`, which `inputs` initialise. `theirs` has none left afterwards."""

    def leaving(key: str, value: torch.Tensor) -> Tensor:
        def read(index):
            part = value[index].clone().numpy()
            value.untyped_storage().resize_(0)
            return part

        return Tensor(key, Path("memory"), tuple(value.shape), np.dtype(np.float32), read)

    template = jax.eval_shape(ours.init, jax.random.key(0), *inputs)["params"]
    state = {key: leaving(key, value) for key, value in theirs.state_dict().items()}
    place = lambda path, leaf: jnp.asarray(np.asarray(leaf))  # noqa: E731
    return {"params": from_torch(template, state, type(theirs).__name__, table, place)}


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def tokens(vocab: int, *shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, vocab, shape), jnp.int32)


def right_padded(rows: int, width: int, shortest: int) -> jax.Array:
    return jnp.arange(width) < jnp.linspace(width, shortest, rows).astype(int)[:, None]


@pytest.fixture(scope="module")
def diffusers_configs():
    return diffusion_files(CONFIG.unet, CONFIG.vae, ScheduleConfig(), "ddim")


@torch.inference_mode()
def test_unet(assert_parity, diffusers_configs):
    theirs = built(diffusers.UNet2DConditionModel.from_config, diffusers_configs["unet/config.json"])
    inputs = normal(2, 32, 32, 8), jnp.array([17.0, 871.25]), normal(2, 77, 768, seed=1)
    wanted = array(theirs(*map(tensor, inputs)).sample)
    ours = UNet2DConditionModel(CONFIG.unet)
    params = moved(theirs, ours, *inputs)
    error = relative_error(jax.jit(ours.apply)(params, *inputs), wanted)
    assert_parity("UNet, Stable Diffusion v1.5, 32 x 32 latents", error)


@torch.inference_mode()
def test_vae(assert_parity, diffusers_configs):
    theirs = built(diffusers.AutoencoderKL.from_config, diffusers_configs["vae/config.json"])
    pixels, latents = jnp.tanh(normal(1, 128, 128, 3)), normal(1, 16, 16, 4)
    posterior = theirs.encode(tensor(pixels)).latent_dist
    wanted = array(posterior.mean), array(posterior.logvar), array(theirs.decode(tensor(latents)).sample)
    ours = AutoencoderKL(CONFIG.vae)
    params = moved(theirs, ours, pixels, jax.random.key(0), table=tables.VAE)

    @jax.jit
    def run(params):
        posterior = ours.apply(params, pixels, method="encode")
        return posterior.mean, posterior.logvar, ours.apply(params, latents, method="decode")

    mean, logvar, decoded = map(relative_error, run(params), wanted)
    assert_parity("VAE encoder, Stable Diffusion v1.5, 128 px", max(mean, logvar))
    assert_parity("VAE decoder, Stable Diffusion v1.5, 128 px", decoded)


@torch.inference_mode()
def test_clip(assert_parity):
    config = CONFIG.mllm.vision
    theirs = built(transformers.CLIPVisionModel, transformers.CLIPVisionConfig(**dataclasses.asdict(config)))
    pixels = normal(2, config.image_size, config.image_size, 3)
    out = theirs(tensor(pixels), output_hidden_states=True)
    wanted = array(out.hidden_states[-2])[:, 1:], array(out.last_hidden_state), array(out.pooler_output)
    ours = CLIPVisionModel(config)
    params = moved(theirs, ours, pixels, table=tables.VISION_TOWER)
    run = jax.jit(lambda p: (ours.apply(p, pixels), *ours.apply(p, pixels, method="pooled")))
    assert_parity("CLIP ViT-L/14, 224 px", max(map(relative_error, run(params), wanted)))


@torch.inference_mode()
def test_llama(assert_parity):
    config = dataclasses.replace(CONFIG.mllm.llm, num_hidden_layers=2)
    theirs = built(transformers.LlamaForCausalLM, transformers.LlamaConfig(**dataclasses.asdict(config)))
    ids, mask = tokens(config.vocab_size, 2, 320), right_padded(2, 320, 200)
    ids_, mask_ = tensor(ids).long(), tensor(mask).long()
    out = theirs(input_ids=ids_, attention_mask=mask_, output_hidden_states=True)
    keep = np.asarray(mask)
    wanted = array(out.hidden_states[-1])[keep], array(out.logits)[keep]
    ours = LlamaForCausalLM(config)
    params = moved(theirs, ours, normal(1, 2, config.hidden_size), ids[:1, :2], mask[:1, :2], table=tables.MLLM)

    @jax.jit
    def run(params):
        hidden, _ = ours.apply(params, ours.apply(params, ids, method="embed"), text_positions(mask), mask)
        return hidden, ours.apply(params, hidden, method="logits")

    hidden, logits = (relative_error(mine[keep], value) for mine, value in zip(run(params), wanted, strict=True))
    assert_parity("LLaMA-7B width, 2 layers, 320 tokens", max(hidden, logits))


@torch.inference_mode()
def test_t5(assert_parity):
    config = dataclasses.replace(presets.flan_t5_xxl(), num_layers=2, num_decoder_layers=2)
    fields = dataclasses.asdict(config) | {"feed_forward_proj": "gated-gelu", "dropout_rate": 0.0}
    theirs = built(transformers.T5ForConditionalGeneration, transformers.T5Config(**fields))
    # transformers 5 always builds T5 with its head tied.
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(config.vocab_size, config.d_model), requires_grad=False)
    ids, mask = tokens(config.vocab_size, 2, 200), right_padded(2, 200, 120)
    answer = tokens(config.vocab_size, 2, 48, seed=1)
    out = theirs(
        input_ids=tensor(ids).long(), attention_mask=tensor(mask).long(), decoder_input_ids=tensor(answer).long(),
        output_hidden_states=True,
    )  # fmt: skip
    wanted = array(out.decoder_hidden_states[-1]), array(out.logits)
    ours = T5ForConditionalGeneration(config)
    params = moved(theirs, ours, ids[:1, :3], mask[:1, :3], answer[:1, :2], table=tables.T5)

    @jax.jit
    def run(params):
        hidden = ours.apply(params, ids, mask, answer)
        return hidden, ours.apply(params, hidden, method="logits")

    assert_parity("T5-XXL width, 2 + 2 layers", max(map(relative_error, run(params), wanted)))


@torch.inference_mode()
def test_edit_head(assert_parity):
    theirs = built(TorchEditHead, CONFIG.edit_head)
    states = normal(2, 8, CONFIG.edit_head.llm_hidden_size)
    wanted = array(theirs(tensor(states)))
    ours = EditHead(CONFIG.edit_head)
    params = moved(theirs, ours, states)
    assert_parity("edit head", relative_error(jax.jit(ours.apply)(params, states), wanted))
