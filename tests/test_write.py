"""`edit.write` on a tiny model: its [IMG] tokens read in one pass, and token by token."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgie_jax import edit
from mgie_jax.diffusion.sample import scales
from mgie_jax.models import presets
from mgie_jax.models.mgie import MGIE, NUM_IMG_TOKENS

CONFIG = replace(presets.test(), sampling=replace(presets.test().sampling, max_new_tokens=24))
MODEL = MGIE(CONFIG)
LLM, VISION = CONFIG.mllm.llm, CONFIG.mllm.vision
SPECIAL = edit.Special(img0=LLM.vocab_size - NUM_IMG_TOKENS, eos=2, pad=0)
PATCHES = [CONFIG.mllm.im_patch_id] * VISION.num_patches
ROWS, WIDTH = 6, VISION.num_patches + 12
USUAL = 104  # a token that the random model says now and then


@pytest.fixture(scope="module")
def asked():
    rng = np.random.default_rng(3)
    lengths = rng.integers(2, 12, ROWS)
    ids = np.zeros((ROWS, WIDTH), np.int32)
    for row, length in enumerate(lengths):
        ids[row, : len(PATCHES) + length] = [1, *PATCHES, *rng.integers(3, 30, length - 1)]
    return edit.EditBatch(
        ids=jnp.asarray(ids),
        mask=jnp.arange(WIDTH) < jnp.asarray(len(PATCHES) + lengths)[:, None],
        clip_pixels=jnp.asarray(rng.standard_normal((ROWS, VISION.image_size, VISION.image_size, 3), np.float32)),
        pixels=jnp.zeros((ROWS, 16, 16, 3)),
        scales=scales(ROWS, 1.0, 1.0),
    )


def rigged(params, faithful):
    """A model that says [IMG0] now and then, and only then the next ones, up to the `faithful`-th, and the end."""
    embedding = params["model"]["embed_tokens"]["embedding"].copy()
    head = params["lm_head"]["kernel"].copy()
    ids, places, other = SPECIAL.img0 + np.arange(NUM_IMG_TOKENS), np.arange(NUM_IMG_TOKENS), NUM_IMG_TOKENS
    # What token was read last is seen in its state: which [IMG], or another.
    embedding[:, other] = 3
    embedding[ids] = 200 * np.eye(NUM_IMG_TOKENS, LLM.hidden_size)
    head[: other + 1] = 0
    head[:, SPECIAL.eos] = head[:, ids] = 0
    head[:, ids[0]] = 1.05 * params["lm_head"]["kernel"][:, USUAL]  # said wherever that token would be
    head[: other + 1, ids[0]] = 0
    head[places, [*ids[1:], SPECIAL.eos]] = np.where(places < faithful, 30, 0)
    head[other, [*ids[1:], SPECIAL.eos]] = -90
    model = params["model"] | {"embed_tokens": {"embedding": embedding}}
    return {"mllm": params | {"model": model, "lm_head": {"kernel": head}}}


written = jax.jit(partial(edit.write, MODEL, special=SPECIAL))


@jax.jit
def plain(params, batch):
    return edit.answer(
        MODEL, params, batch.ids, batch.mask, batch.clip_pixels,
        max_new_tokens=CONFIG.sampling.max_new_tokens, eos_id=SPECIAL.eos, pad_id=SPECIAL.pad,
    )[1]  # fmt: skip


@pytest.mark.parametrize("faithful", [None, 0, 3, 7, 8])
def test_the_answer_is_that_of_plain_greedy_decoding(tiny_params, asked, faithful):
    params = tiny_params if faithful is None else rigged(tiny_params["mllm"], faithful)
    params = {"mllm": params["mllm"]}
    wanted, (found, states) = plain(params, asked), written(params, asked)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.length, wanted.length)
    np.testing.assert_allclose(found.hidden, wanted.hidden, atol=2e-5)
    if faithful is None:
        return
    begun = [int(np.argmax(row == SPECIAL.img0)) for row in np.asarray(wanted.tokens)]
    assert sorted(begun) == [3, 6, 8, 13, 16, 18], "rows that come to [IMG0] one after the other"
    for row, first in enumerate(begun):
        run = np.asarray(wanted.tokens[row, first : first + NUM_IMG_TOKENS])
        follows = np.cumprod(run == SPECIAL.img0 + np.arange(len(run))).sum()
        assert follows == min(1 + faithful, len(run)), "so many of them follow"
        if first + NUM_IMG_TOKENS < wanted.length[row]:  # of shorter answers, other states are taken
            np.testing.assert_allclose(states[row], wanted.hidden[row, first : first + NUM_IMG_TOKENS], atol=2e-5)


def test_a_row_is_the_same_alone_and_in_a_batch(tiny_params, asked):
    params = rigged(tiny_params["mllm"], 8)
    together, states = written(params, asked)
    for row in range(2):
        alone, own = written(params, jax.tree.map(lambda x, row=row: x[row : row + 1], asked))
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_allclose(own[0], states[row], atol=2e-5)
