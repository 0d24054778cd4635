"""Greedy decoding against transformers' generate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from mgie_jax.models.llama import LlamaConfig, LlamaForCausalLM, init_cache, text_positions
from mgie_jax.text.decode import Step, greedy, repeats_ngram
from tests.parity.pairs import llama_pair

VOCAB, NEW = 13, 40
CONFIG = LlamaConfig(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2,
)  # fmt: skip
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [7, 1], [1, 2, 3, 1, 2, 3, 1]]
NEVER = VOCAB + 1  # an end token that no row can say


@pytest.fixture(scope="module")
def pair():
    theirs, _, params = llama_pair(CONFIG, seed=1, scale=0.3)
    return theirs, params


def read(params, ids, mask, cache):
    model = LlamaForCausalLM(CONFIG)
    positions = cache.next_position[:, None] + text_positions(mask)
    return model.apply(params, model.apply(params, ids, method="embed"), positions, mask, cache)


def right_padded(prompts):
    lengths = jnp.array([len(prompt) for prompt in prompts])
    width = int(lengths.max())
    return jnp.array([prompt + [0] * (width - len(prompt)) for prompt in prompts]), lengths


def decode(params, prompts, **options):
    ids, lengths = right_padded(prompts)
    rows, width = ids.shape

    def says(hidden):
        return Step(LlamaForCausalLM(CONFIG).apply(params, hidden, method="logits"), hidden)

    def step(cache, tokens, valid):
        hidden, cache = read(params, tokens, valid, cache)
        return says(hidden), cache

    @jax.jit
    def run(ids, lengths):
        cache = init_cache(CONFIG, rows, width + NEW)
        hidden, cache = read(params, ids, jnp.arange(width) < lengths[:, None], cache)
        first = says(hidden[jnp.arange(rows), lengths - 1])
        return greedy(step, first, cache, ids, lengths, max_new_tokens=NEW, **options)

    return run(ids, lengths)


def generate(theirs, prompt, **options):
    with torch.no_grad():
        out = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False,
            max_new_tokens=NEW, pad_token_id=0, **options,
        )  # fmt: skip
    return out[0, len(prompt) :].tolist()


def test_tokens_are_those_of_generate_for_prompts_of_several_lengths(pair):
    theirs, params = pair
    free = [generate(theirs, prompt, eos_token_id=None) for prompt in PROMPTS]
    wanted = [generate(theirs, prompt, eos_token_id=None, no_repeat_ngram_size=3) for prompt in PROMPTS]
    assert all(a != b for a, b in zip(free, wanted, strict=True)), "the ban must matter for this test to mean much"
    out = decode(params, PROMPTS, eos_id=NEVER)
    assert out.tokens.tolist() == wanted
    assert out.length.tolist() == [NEW] * 3
    assert decode(params, PROMPTS, eos_id=NEVER, no_repeat_ngram=0).tokens.tolist() == free


def test_a_right_padded_batch_says_what_generate_says_to_a_left_padded_one(pair):
    """transformers takes padding on the left; there, too, a row's tokens are those of the row alone."""
    theirs, params = pair
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    with torch.no_grad():
        wanted = theirs.generate(
            ids, attention_mask=(ids > 0).long(), do_sample=False, max_new_tokens=NEW, pad_token_id=0,
            eos_token_id=None, no_repeat_ngram_size=3,
        )  # fmt: skip
    assert decode(params, PROMPTS, eos_id=NEVER).tokens.tolist() == wanted[:, width:].tolist()


def test_rows_end_at_their_end_token(pair):
    theirs, params = pair
    eos = generate(theirs, PROMPTS[0], eos_token_id=None, no_repeat_ngram_size=3)[5]
    out = decode(params, PROMPTS, eos_id=eos)
    for row, prompt in enumerate(PROMPTS):
        wanted = generate(theirs, prompt, eos_token_id=eos, no_repeat_ngram_size=3)
        assert int(out.length[row]) == len(wanted)
        assert out.tokens[row].tolist() == wanted + [0] * (NEW - len(wanted))
        assert not out.hidden[row, len(wanted) :].any()
        assert out.hidden[row, : len(wanted)].any(-1).all()
    assert int(out.length[0]) < NEW


def test_a_row_is_the_same_alone_and_in_a_batch(pair):
    _, params = pair
    together = decode(params, PROMPTS, eos_id=NEVER)
    for row, prompt in enumerate(PROMPTS):
        alone = decode(params, [prompt], eos_id=NEVER)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_allclose(alone.hidden[0], together.hidden[row], atol=1e-5)


def test_hidden_states_are_those_that_predicted_each_token(pair):
    _, params = pair
    out = decode(params, PROMPTS, eos_id=NEVER)
    text = jnp.array([PROMPTS[0] + out.tokens[0].tolist()])
    hidden, _ = read(params, text, jnp.ones_like(text, bool), init_cache(CONFIG, 1, text.shape[1]))
    begin = len(PROMPTS[0]) - 1
    np.testing.assert_allclose(out.hidden[0], hidden[0, begin : begin + NEW], atol=1e-5)


def test_no_step_is_taken_once_every_row_has_ended():
    """A network that says 0, 1, 2, 3... to every row needs three steps to end on 3, whatever room is left."""
    calls = []

    def said(t):
        return Step(jax.nn.one_hot(jnp.full(2, t), VOCAB), jnp.full((2, 1), t, jnp.float32))

    def step(t, tokens, valid):
        jax.debug.callback(lambda t: calls.append(int(t)), t)
        return jax.tree.map(lambda x: x[:, None], said(t + 1)), t + 1

    ids, lengths = right_padded([[5, 6], [7]])
    out = greedy(step, said(0), jnp.int32(0), ids, lengths, max_new_tokens=NEW, eos_id=3)
    jax.effects_barrier()
    assert out.tokens[:, :4].tolist() == [[0, 1, 2, 3]] * 2
    assert out.length.tolist() == [4, 4]
    assert sorted(calls) == [0, 1, 2]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_banned_tokens_are_those_of_transformers(n):
    text = jax.random.randint(jax.random.key(n), (40, 20), 0, 4)
    lengths = jnp.arange(40) % 21
    ours = repeats_ngram(text, lengths, n, 4)
    processor = transformers.NoRepeatNGramLogitsProcessor(n)
    for row in range(40):
        seen = torch.tensor(np.asarray(text[row, : lengths[row]])).long()[None]
        banned = torch.isinf(processor(seen, torch.zeros(1, 4)))[0].tolist() if lengths[row] else [False] * 4
        assert ours[row].tolist() == banned, (row, n)
