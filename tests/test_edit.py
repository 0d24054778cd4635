"""The sampling story on a tiny model: one program, its stages, and what must not depend on the batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mgie_jax import edit
from mgie_jax.diffusion.sample import SAMPLERS
from mgie_jax.loading import load
from mgie_jax.models import presets
from mgie_jax.models.mgie import img_states

CONFIG = presets.test()


@pytest.fixture(scope="module")
def editor(tiny_model_dir):
    return load(tiny_model_dir)


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)) for _ in range(3)]


def on_device(batch):
    return jax.tree.map(jnp.asarray, batch)


def pixels(result):
    return np.asarray(result.image, np.int16)


@pytest.mark.parametrize("name", SAMPLERS)
def test_stages_equal_the_one_program(editor, photos, name):
    """What `Editor` does in stages, step by step, is what `edit.edit` compiles whole."""
    result = editor.edit(photos[0], "brighter", seed=5, steps=3, sampler=name)
    batch = editor.batch([editor.prepare(photos[0], "brighter")], 7.5, 1.5)
    plan = SAMPLERS[name](CONFIG.schedule, 3)
    keys = jax.vmap(jax.random.key)(jnp.asarray([5], jnp.uint32))
    whole = jax.jit(partial(edit.edit, editor.model, sampler=plan, special=editor._special))
    pictures, tokens = whole(editor.params, batch, keys)
    assert np.abs(np.asarray(pictures[0], np.int16) - pixels(result)).max() <= 1
    assert editor.tokenizer.decode_answer(np.asarray(tokens[0])) == result.expressive


def test_same_seed_alone_or_in_a_batch(editor, photos):
    words = ["brighter", "make it much cooler please", "dark"]
    together = editor.edit_many(photos, words, seeds=[3, 4, 3])
    for photo, text, seed, result in zip(photos, words, [3, 4, 3], together, strict=True):
        alone = editor.edit(photo, text, seed=seed)
        assert alone.expressive == result.expressive
        assert np.abs(pixels(alone) - pixels(result)).max() <= 1


def test_another_seed_gives_another_picture(editor, photos):
    a, b = (editor.edit(photos[0], "brighter", seed=seed) for seed in (0, 1))
    assert np.abs(pixels(a) - pixels(b)).max() > 8
    assert a.expressive == b.expressive


def test_states_kept_redraw_without_the_mllm(editor, photos, monkeypatch):
    first = editor.edit(photos[0], "brighter", seed=2)
    monkeypatch.setattr("mgie_jax.programs.write", None)
    again = editor.edit(photos[0], "brighter", seed=2, states=first.states)
    assert np.array_equal(pixels(first), pixels(again))


def test_supplied_expressive_instruction_is_read(editor, photos):
    """The states of a supplied text are those at its own [IMG] tokens, and the text decides the picture."""
    first = editor.edit(photos[0], "brighter", expressive="The photo is dark.", seed=2)
    other = editor.edit(photos[0], "brighter", expressive="It becomes much brighter.", seed=2)
    assert first.expressive == "The photo is dark."
    assert np.abs(pixels(first) - pixels(other)).max() > 0
    ids, _ = editor.tokenizer.encode_example("brighter", "The photo is dark.")
    batch = on_device(
        editor.batch([editor.prepare(first.before, "brighter", expressive="The photo is dark.")], 1.0, 1.0)
    )
    hidden = editor.model.mllm.apply({"params": editor.params["mllm"]}, batch.ids, batch.mask, batch.clip_pixels)
    at = ids.index(editor.tokenizer.img_ids[0])
    np.testing.assert_allclose(first.states, hidden[0, at - 1 : at + 7], rtol=1e-4, atol=1e-5)


def test_written_states_are_those_of_the_whole_text(editor, photos):
    """Cached decoding picks the very states that one uncached pass over prompt and answer has."""
    batch = on_device(editor.batch([editor.prepare(photos[0].resize((32, 32)), "brighter")], 1.0, 1.0))
    answer, states = edit.write(editor.model, editor.params, batch, editor._special)
    prompt, length = int(batch.mask.sum()), int(answer.length[0])
    ids = jnp.concatenate([batch.ids[0, :prompt], answer.tokens[0, :length]])[None]
    mllm = {"params": editor.params["mllm"]}
    hidden = editor.model.mllm.apply(mllm, ids, jnp.ones_like(ids, bool), batch.clip_pixels)[0]
    found = np.flatnonzero(ids[0] == editor.tokenizer.img_ids[0])
    # The reference counts states up to the last but one token: the last one generated is never read.
    states_seen = len(ids[0]) - 1
    p = min(found[0] - 1 if len(found) else states_seen - 9, states_seen - 9)
    np.testing.assert_allclose(states[0], hidden[p : p + 8], rtol=1e-3, atol=1e-4)


def test_img_states_near_the_end_and_missing():
    """p = min(position of [IMG0] - 1, length - 9), as the reference implementation has it."""
    hidden = jnp.arange(40.0).reshape(2, 20, 1)
    picked = img_states(hidden, jnp.array([5, 20]), jnp.array([20, 15]))[..., 0]
    assert picked[0].tolist() == list(range(4, 12))
    assert picked[1].tolist() == list(range(20 + 6, 20 + 14))


def test_progress_counts_every_step(editor, photos):
    seen = []
    editor.edit(photos[0], "brighter", steps=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_aspect_ratio_is_kept(editor):
    result = editor.edit(Image.new("RGB", (300, 150), "teal"), "brighter")
    assert result.image.size == result.before.size and result.image.width == 2 * result.image.height


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "heun"}, "no sampler 'heun'"),
        ({"steps": 0}, "steps"),
        ({"instruction": "  "}, "empty"),
        ({"instruction": "brighter " * 200}, "limit is"),
    ],
)
def test_bad_arguments(editor, photos, arguments, message):
    with pytest.raises(ValueError, match=message):
        editor.edit(photos[0], **{"instruction": "brighter", **arguments})
