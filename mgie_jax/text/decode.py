"""Greedy decoding as one compiled loop, for any network that can be stepped a token at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Step(NamedTuple):
    """What a network says after reading a token: logits for the next, and the state they are read from."""

    logits: Float[Array, "b vocab"]
    hidden: Float[Array, "b d"]


class Decoded(NamedTuple):
    """An answer for each row.

    `hidden[:, t]` is the state that predicted `tokens[:, t]`. `length` counts the tokens up to and including
    the end token; after it, `tokens` are padding and `hidden` is zero.
    """

    tokens: Int[Array, "b new"]
    hidden: Float[Array, "b new d"]
    length: Int[Array, " b"]


def repeats_ngram(
    text: Int[Array, "b l"], length: Int[Array, " b"], n: int, vocab_size: int
) -> Bool[Array, "b vocab_size"]:
    """The tokens that would complete an n-gram already among the first `length` tokens of their row; none for n 0.

    As transformers' `NoRepeatNGramLogitsProcessor`, except that `length` keeps padding out of the count.
    """
    rows, width = text.shape
    if n == 0:
        return jnp.zeros((rows, vocab_size), bool)
    starts = jnp.arange(width - n + 1)
    matches = starts + n <= length[:, None]
    for offset in range(n - 1):
        # The last n - 1 tokens; below n tokens no start is inside the text, so where the index lands is moot.
        recent = jnp.take_along_axis(text, jnp.maximum(length[:, None] - (n - 1) + offset, 0), axis=1)
        matches &= text[:, offset : offset + width - n + 1] == recent
    completions = text[:, n - 1 :]
    return jnp.zeros((rows, vocab_size), bool).at[jnp.arange(rows)[:, None], completions].max(matches)


def greedy(
    step: Callable[[Any, Int[Array, " b"]], tuple[Step, Any]],
    first: Step,
    state: Any,
    prompt_ids: Int[Array, "b l"],
    prompt_length: Int[Array, " b"],
    *,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int = 0,
    no_repeat_ngram: int = 3,
) -> Decoded:
    """The likeliest next token, again and again, until every row has ended or has `max_new_tokens`.

    `first` and `state` are what reading the prompt gave: `first` at each row's last prompt token, `state` (a
    KV cache, say) whatever `step(state, tokens) -> (Step, state)` wants. `prompt_ids` are right-padded, with
    `prompt_length` real tokens a row. No token completes an n-gram of `no_repeat_ngram` tokens that its row's
    prompt and answer already hold; 0 allows them all. Rows do not see one another. Source: transformers'
    `generate` with `do_sample=False, no_repeat_ngram_size=3`.
    """
    rows, width = prompt_ids.shape
    row = jnp.arange(rows)
    # The answer goes right behind each row's prompt: n-grams run across the seam.
    text = jnp.pad(prompt_ids, ((0, 0), (0, max_new_tokens)))

    def choose(said: Step, text, length):
        banned = repeats_ngram(text, length, no_repeat_ngram, said.logits.shape[-1])
        return jnp.argmax(jnp.where(banned, -jnp.inf, said.logits), axis=-1).astype(text.dtype)

    def record(t, said: Step, text, out: Decoded, ended):
        token = jnp.where(ended, pad_id, choose(said, text, prompt_length + out.length))
        text = text.at[row, prompt_length + out.length].set(token, mode="drop")
        out = Decoded(
            tokens=out.tokens.at[:, t].set(token),
            hidden=out.hidden.at[:, t].set(jnp.where(ended[:, None], 0, said.hidden)),
            length=out.length + ~ended,
        )
        return text, out, ended | (token == eos_id)

    def unfinished(carry):
        t, _, _, _, ended = carry
        return (t < max_new_tokens) & ~ended.all()

    def body(carry):
        t, state, text, out, ended = carry
        said, state = step(state, out.tokens[:, t - 1])
        text, out, ended = record(t, said, text, out, ended)
        return t + 1, state, text, out, ended

    out = Decoded(
        tokens=jnp.full((rows, max_new_tokens), pad_id, prompt_ids.dtype),
        hidden=jnp.zeros((rows, max_new_tokens, first.hidden.shape[-1]), first.hidden.dtype),
        length=jnp.zeros(rows, prompt_length.dtype),
    )
    # The first token needs no step, so the loop steps before it chooses and never once too often.
    text, out, ended = record(0, first, text, out, jnp.zeros(rows, bool))
    return jax.lax.while_loop(unfinished, body, (jnp.int32(1), state, text, out, ended))[3]
