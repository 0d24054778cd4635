"""Beam search against transformers' generate, for an encoder-decoder and a decoder-only network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mgie_jax.data.summarize import summarize
from mgie_jax.models.llama import LlamaConfig, init_cache, text_positions
from mgie_jax.models.t5 import T5Config
from mgie_jax.text.beam import beam_search
from mgie_jax.text.decode import Step
from tests.parity.pairs import llama_pair, t5_pair

T5 = T5Config(vocab_size=41, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4)
LLAMA = LlamaConfig(
    vocab_size=23, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2,
)  # fmt: skip
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [7, 1], [1, 2, 3, 1, 2, 3, 1]]
LENGTHS = jnp.array([17, 9, 3])  # of the texts in a batch for T5
HEAD_SCALE = 0.3  # at which answers end of themselves, after some tens of tokens

run = jax.jit(summarize, static_argnames=("model", "num_beams", "max_length", "no_repeat_ngram", "early_stopping"))


@pytest.fixture(scope="module")
def t5():
    return t5_pair(T5, 0, HEAD_SCALE)


def texts(seed):
    ids = jax.random.randint(jax.random.key(seed), (len(LENGTHS), 17), 2, T5.vocab_size)
    return ids, jnp.arange(17) < LENGTHS[:, None]


def their_beams(theirs, ids, mask, **options):
    """(Tokens with the prompt, scores) of the best beams."""
    ids, mask = (torch.tensor(np.asarray(x)).long() for x in (ids, mask))
    with torch.no_grad():
        out = theirs.generate(
            ids, attention_mask=mask, do_sample=False, num_beams=5, no_repeat_ngram_size=3,
            return_dict_in_generate=True, output_scores=True, pad_token_id=0, **options,
        )  # fmt: skip
    return out.sequences, out.sequences_scores.numpy()


def assert_same(ours, answers, scores, eos):
    """`answers`, without prompts, run on behind their end."""
    for row, answer in enumerate(answers.tolist()):
        length = answer.index(eos) + 1 if eos in answer else len(answer)
        assert int(ours.length[row]) == length
        assert ours.tokens[row].tolist() == answer[:length] + [0] * (ours.tokens.shape[1] - length)
    np.testing.assert_allclose(ours.score, scores, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_summaries_are_those_of_generate_for_a_padded_batch(seed):
    theirs, ours, params = t5_pair(T5, seed, HEAD_SCALE)
    ids, mask = texts(seed)
    sequences, scores = their_beams(theirs, ids, mask, min_length=5, max_length=64)
    beams = run(ours, params["params"], ids, mask)
    assert_same(beams, sequences[:, 1:], scores, eos=1)
    with torch.no_grad():
        one = theirs.generate(torch.tensor(np.asarray(ids)), do_sample=False, num_beams=1, max_length=5)
    assert one[:, 1:5].tolist() != beams.tokens[:, :4].tolist(), "beams must matter for this test to mean much"


@pytest.mark.parametrize(
    "options",
    [dict(early_stopping=True), dict(min_length=30), dict(length_penalty=2.0), dict(length_penalty=-1.0)],
    ids=str,
)
def test_options_mean_what_they_mean_to_generate(t5, options):
    theirs, ours, params = t5
    ids, mask = texts(0)
    sequences, scores = their_beams(theirs, ids, mask, **{"min_length": 5, "max_length": 64} | options)
    beams, usual = (run(ours, params["params"], ids, mask, **given) for given in (options, {}))
    assert_same(beams, sequences[:, 1:], scores, eos=1)
    assert beams.tokens.tolist() != usual.tokens.tolist(), "the option must matter for this test to mean much"


def test_a_text_is_summarized_alike_alone_and_in_a_batch(t5):
    _, ours, params = t5
    ids, mask = texts(0)
    together = run(ours, params["params"], ids, mask)
    alone = run(ours, params["params"], ids[2:, :3], mask[2:, :3])
    assert alone.tokens[0].tolist() == together.tokens[2].tolist()
    np.testing.assert_allclose(alone.score[0], together.score[2], rtol=1e-5)


def llama_beams(ours, params, prompts, **options):
    lengths = jnp.array([len(prompt) for prompt in prompts])
    rows, width, new = len(prompts), int(lengths.max()), options["max_new_tokens"]
    ids = jnp.array([prompt + [0] * (width - len(prompt)) for prompt in prompts])

    def read(ids, mask, cache):
        positions = cache.next_position[:, None] + text_positions(mask)
        return ours.apply(params, ours.apply(params, ids, method="embed"), positions, mask, cache)

    def says(hidden):
        return Step(ours.apply(params, hidden, method="logits"), hidden)

    def step(cache, tokens):
        hidden, cache = read(tokens[:, None], jnp.ones((tokens.size, 1), bool), cache)
        return says(hidden[:, 0]), cache

    @jax.jit
    def run(ids, lengths):
        hidden, cache = read(ids, jnp.arange(width) < lengths[:, None], init_cache(LLAMA, rows, width + new))
        first = says(hidden[jnp.arange(rows), lengths - 1])
        return beam_search(step, lambda cache, rows: cache.take(rows), first, cache, ids, lengths, **options)

    return run(ids, lengths)


def test_a_decoder_only_network_says_what_generate_says_to_prompts_of_several_lengths():
    theirs, ours, params = llama_pair(LLAMA, seed=1)
    width, new, eos = max(map(len, PROMPTS)), 24, 11
    ids = jnp.array([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    sequences, scores = their_beams(theirs, ids, ids > 0, min_new_tokens=3, max_new_tokens=new, eos_token_id=eos)
    beams = llama_beams(ours, params, PROMPTS, num_beams=5, max_new_tokens=new, min_new_tokens=3, eos_id=eos)
    assert_same(beams, sequences[:, width:], scores, eos)
    assert len(set(beams.length.tolist())) > 1
