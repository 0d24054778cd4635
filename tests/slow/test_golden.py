"""The joint loss and the edit against the figures of the released PyTorch implementation (../golden/README.md)."""

import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgie_jax.diffusion.sample import scales
from mgie_jax.edit import EditBatch, Special, guide, write
from mgie_jax.models.clip import CLIPVisionConfig
from mgie_jax.models.edit_head import EditHeadConfig
from mgie_jax.models.llama import LlamaConfig
from mgie_jax.models.mgie import MGIE, img_embeddings
from mgie_jax.models.mllm import MLLMConfig
from mgie_jax.models.presets import MGIEConfig, SamplingConfig
from mgie_jax.models.unet import UNetConfig
from mgie_jax.models.vae import VAEConfig
from mgie_jax.train.loss import Draws, EditPairBatch, TextBatch, joint_loss, predict
from mgie_jax.train.state import merge_params, split_params
from mgie_jax.weights.configs import from_fields
from mgie_jax.weights.rules import from_torch, iter_torch, leaves
from tests.parity.carry import relative_error

pytestmark = [pytest.mark.parity, pytest.mark.slow]

FIGURES = np.load(Path(__file__).parents[1] / "golden" / "official_mgie.npz")
SIZES = json.loads(str(FIGURES["config"]))
PATCH, IMG0, EOS, PAD = 32000, 32003, 2, 0
PREFIX = {"mllm": "", "edit_head": "edit_head.", "unet": "unet.", "vae": "vae."}
TRAINED = ("mllm/model/embed_tokens/", "mllm/lm_head/", "edit_head/", "unet/")


def draw(key, shape, scale):
    rng = np.random.default_rng([SIZES["seed"], zlib.crc32(key.encode())])
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)


class Weight:
    """A tensor of the recipe, drawn when it is read."""

    dtype = np.dtype(np.float32)

    def __init__(self, key, shape):
        self.key, self.shape = key, shape

    def __array__(self, dtype=None, copy=None):
        if len(self.shape) == 1:
            return draw(self.key, self.shape, 0.1) + np.float32(self.key.endswith("weight"))
        wide = any(word in self.key.removeprefix("vision_tower.") for word in ("embed", "query"))
        return draw(self.key, self.shape, 0.5 if wide else np.prod(self.shape[1:]) ** -0.5)


def photos(key, shape):
    return jnp.asarray(draw(key, shape, 1).transpose(0, 2, 3, 1))


def norm(x):
    """In float64: over the vocabulary's gradient NumPy's float32 sum of squares is 1e-4 off."""
    return np.sqrt(sum(np.square(row, dtype=np.float64).sum() for row in x))


@pytest.fixture(scope="module")
def model():
    llm = {**SIZES["llm"], "num_key_value_heads": SIZES["llm"]["num_attention_heads"]}
    vision = from_fields(CLIPVisionConfig, SIZES["clip"], "clip")
    return MGIE(
        MGIEConfig(
            mllm=MLLMConfig(vision, from_fields(LlamaConfig, llm, "llm"), "linear", im_patch_id=PATCH),
            edit_head=EditHeadConfig(),
            unet=from_fields(UNetConfig, SIZES["unet"], "unet"),
            vae=from_fields(VAEConfig, SIZES["vae"], "vae"),
            sampling=SamplingConfig(max_new_tokens=FIGURES["generate.tokens"].size),
        )
    )


@pytest.fixture(scope="module")
def params(model):
    def part(name, template):
        keys = {key: leaf.shape for leaf, _ in leaves(template) for key in leaf.keys}
        tensors = {key: Weight(PREFIX[name] + key, shape) for key, shape in keys.items()}
        return from_torch(template, tensors, name, place=lambda _, leaf: jnp.asarray(np.asarray(leaf)))

    return {name: part(name, template) for name, template in model.shapes().items()}


@pytest.fixture(scope="module")
def batch():
    ids, mask, labels = (jnp.asarray(FIGURES[key]) for key in ("input_ids", "attention_mask", "labels"))
    return EditPairBatch(
        text=TextBatch(ids=ids, mask=mask, labels=labels, clip_pixels=photos("in.pixel_values", (2, 3, 56, 56))),
        source=jnp.tanh(photos("in.source", (2, 3, 64, 64))),
        target=jnp.tanh(photos("in.target", (2, 3, 64, 64))),
    )


@pytest.fixture(scope="module")
def graded(model, params, batch):
    """uniform draws -> (prediction, metrics), gradients; one program for all cases."""
    trained, frozen = split_params(params, TRAINED)

    @jax.jit
    def run(trained, frozen, draws):
        def loss(trained):
            said = predict(model, merge_params(trained, frozen), batch, draws, IMG0)
            value, metrics = joint_loss(said, batch.text.labels)
            return value, (said, metrics)

        return jax.value_and_grad(loss, has_aux=True)(trained)

    def on(uniform):
        draws = Draws(
            posterior=photos("in.posterior_noise", (2, 4, 8, 8)), noise=photos("in.noise", (2, 4, 8, 8)),
            timesteps=jnp.asarray(FIGURES["timesteps"]), uniform=jnp.asarray(uniform),
        )  # fmt: skip
        (_, aux), grads = run(trained, frozen, draws)
        return *aux, grads

    return on


@pytest.mark.parametrize("case", ["keep", "drop", "both"])
def test_joint_loss_and_its_gradients(graded, assert_parity, case):
    """Every example's conditions kept; one example's text and the other's photo dropped; one example without both."""
    said, metrics, grads = graded(FIGURES[f"{case}.uniform"])

    def compare(what, **pairs):
        worst = max(relative_error(ours, FIGURES[key]) for key, ours in pairs.items())
        assert_parity(f"joint loss, {case}: {what}", worst)

    names = {"loss": "loss", "loss_ins": "L_ins", "loss_edit": "L_edit"}
    compare("losses", **{f"{case}.{theirs}": metrics[ours] for theirs, ours in names.items()})
    compare("UNet output", **{f"{case}.eps": said.output.transpose(0, 3, 1, 2)})
    if case == "keep":
        null = jnp.repeat(said.null_guidance, 2, axis=0)
        compare("states and guidance", hidden_img=said.states, guidance=said.guidance, null_guidance=null)

    tensors = {PREFIX[part] + key: np.asarray(grad) for part, tree in grads.items() for key, grad in iter_torch(tree)}
    rows = tensors["model.embed_tokens.weight"][IMG0 : IMG0 + 8, :64]
    heads = {f"{case}.grad_head/{key}": grad.reshape(-1)[:256] for key, grad in tensors.items()}
    heads = {name: head for name, head in heads.items() if name in FIGURES}
    assert heads
    compare("gradients, value by value", **{f"{case}.grad_img_rows": rows}, **heads)

    prefix = f"{case}.grad_norm/"
    norms = {name.removeprefix(prefix): FIGURES[name] for name in FIGURES if name.startswith(prefix)}
    assert norms.keys() == tensors.keys()
    # The floor: attention over the one pixel of the coarsest level has no gradient but rounding's.
    errors = [abs(norm(tensors[key]) - wanted) / max(wanted, 1e-6) for key, wanted in norms.items()]
    assert_parity(f"joint loss, {case}: norms of {len(norms)} gradients", max(errors))


def test_edit_writes_the_same_tokens_and_guidance(model, params, batch, assert_parity):
    length = int(FIGURES["generate.prompt_len"])
    edit = EditBatch(
        ids=batch.text.ids[:1, :length], mask=jnp.ones((1, length), bool), clip_pixels=batch.text.clip_pixels[:1],
        pixels=batch.source[:1], scales=scales(1, 7.5, 1.5),
    )  # fmt: skip

    @jax.jit
    def answer(params, edit):
        params = {**params, "emb": img_embeddings(params["mllm"], IMG0)}
        said, states = write(model, params, edit, Special(img0=IMG0, eos=EOS, pad=PAD))
        return said.tokens, states, guide(model, params, states, edit.pixels)

    tokens, states, conditions = answer(params, edit)
    assert tokens[0].tolist() == FIGURES["generate.tokens"].tolist()
    assert_parity("edit: states picked", relative_error(states[0], FIGURES["generate.hidden_img"]))
    assert_parity("edit: guidance", relative_error(conditions.guidance[0], FIGURES["generate.guidance"]))
    assert_parity("edit: null guidance", relative_error(conditions.null_guidance, FIGURES["null_guidance"][:1]))
