"""Whole models: the published sizes, and parts that fit one another."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from mgie_jax.models import presets
from mgie_jax.models.mgie import MGIE
from mgie_jax.models.t5 import T5ForConditionalGeneration


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def full():
    return MGIE(presets.mgie_7b()).shapes()


def test_llama_7b_with_eleven_more_tokens(full):
    """LLaMA-7B has 6,738,415,616 parameters; embedding and head gain 11 rows of 4096 each."""
    llama = {"model": dict(full["mllm"]["model"]), "lm_head": full["mllm"]["lm_head"]}
    projector = llama["model"].pop("mm_projector")
    assert count(llama) == 6_738_415_616 + 2 * 11 * 4096
    assert count(projector) == 1024 * 4096 + 4096
    assert llama["model"]["embed_tokens"]["embedding"].shape == (32011, 4096)


def test_clip_vit_l_14(full):
    """transformers' `CLIPVisionModel` of openai/clip-vit-large-patch14."""
    assert count(full["mllm"]["vision_tower"]) == 303_179_776


def test_stable_diffusion_autoencoder(full):
    assert count(full["vae"]) == 83_653_863


def test_unet_and_edit_head(full):
    assert count(full["unet"]) == 859_532_484
    assert count(full["edit_head"]) == 31_958_784


def test_flan_t5_xxl():
    """transformers' count for google/flan-t5-xxl: 11,135,332,352, `lm_head` apart from the embedding."""
    model = T5ForConditionalGeneration(presets.flan_t5_xxl())
    ids = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, ids == 0, ids)
    assert count(shapes) == 11_135_332_352


def test_parts_that_do_not_fit_are_refused():
    config = presets.test()
    wider = dataclasses.replace(config.edit_head, cross_attention_dim=48)
    with pytest.raises(ValueError, match="unet.cross_attention_dim is 32, the rest of the model needs 48"):
        dataclasses.replace(config, edit_head=wider)
