"""Beam search as one compiled loop, for any network that can be stepped a token at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mgie_jax.text.decode import Step, repeats_ngram

OUT = -1e9  # what a beam that may no longer be chosen scores: below any real one, yet finite


class Hypothesis(NamedTuple):
    """The best answer found for each row.

    `length` counts the tokens up to and including the end token, where there is one; after it, `tokens` are
    padding. `score` is the sum of the tokens' log-probabilities over length ** length_penalty.
    """

    tokens: Int[Array, "b new"]
    length: Int[Array, " b"]
    score: Float[Array, " b"]


class _Live(NamedTuple):
    """Beams that go on, best first: each row's prompt and answer so far, and its summed log-probability."""

    text: Int[Array, "b beams l"]
    score: Float[Array, "b beams"]


class _Done(NamedTuple):
    """The best answers that have ended, best first, by score with length penalty; slots fill up one by one."""

    text: Int[Array, "b beams l"]
    length: Int[Array, "b beams"]
    score: Float[Array, "b beams"]
    filled: Bool[Array, "b beams"]


def _pick(tree: Any, index: Int[Array, "b k"]) -> Any:
    """Along the beams of each row."""
    return jax.tree.map(
        lambda x: jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=1), tree
    )


@dataclass(frozen=True)
class _Search:
    """What stays the same from token to token; the fields are `beam_search`'s arguments."""

    beams: int
    max_new_tokens: int
    min_new_tokens: int | Int[Array, ""]
    eos_id: int
    no_repeat_ngram: int
    length_penalty: float | Float[Array, ""]
    early_stopping: bool
    prompt_length: Int[Array, " b"]

    def scores(self, t: int | Int[Array, ""], said: Step, live: _Live) -> Float[Array, "b beams vocab"]:
        """Of each live beam with each t-th token after it; -inf for what is not allowed."""
        batch, beams, room = live.text.shape
        vocab = said.logits.shape[-1]
        length = jnp.repeat(self.prompt_length, beams) + t
        banned = repeats_ngram(live.text.reshape(-1, room), length, self.no_repeat_ngram, vocab)
        banned |= (jnp.arange(vocab) == self.eos_id) & (t < self.min_new_tokens)
        score = jnp.where(banned, -jnp.inf, jax.nn.log_softmax(said.logits.astype(jnp.float32)))
        return score.reshape(batch, beams, vocab) + live.score[..., None]

    def advance(
        self, t: int | Int[Array, ""], said: Step, live: _Live, done: _Done, improvable: Bool[Array, " b"]
    ) -> tuple[_Live, _Done, Bool[Array, " b"], Int[Array, "b beams"]]:
        """Choose the t-th tokens: the live and ended beams after them, and the beam each live one comes from."""
        batch, beams, _ = live.text.shape
        score = self.scores(t, said, live)

        # Twice as many candidates as beams: each beam has one that ends, so as many again go on.
        score, index = jax.lax.top_k(score.reshape(batch, -1), 2 * beams)
        vocab = said.logits.shape[-1]
        parent, token = index // vocab, index % vocab
        place = jnp.arange(batch)[:, None], jnp.arange(2 * beams), (self.prompt_length + t)[:, None]
        text = _pick(live.text, parent).at[place].set(token.astype(live.text.dtype))
        ended = (token == self.eos_id) | (t + 1 == self.max_new_tokens)

        # An end counts only among the best `beams` candidates, and while the row is not done.
        counts = ended & (jnp.arange(2 * beams) < beams) & improvable[:, None]
        if self.early_stopping:
            counts &= ~done.filled.all(-1, keepdims=True)
        penalty = (t + 1.0) ** self.length_penalty
        length = jnp.broadcast_to(t + 1, score.shape).astype(done.length.dtype)
        more = _Done(text, length, jnp.where(counts, score / penalty, OUT), counts)
        done = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), done, more)
        done = _pick(done, jax.lax.top_k(done.score, beams)[1])

        score, index = jax.lax.top_k(jnp.where(ended, score + OUT, score), beams)
        live = _Live(_pick(text, index), score)
        worst = jnp.where(done.filled.all(-1), done.score.min(-1), OUT)
        improvable &= live.score[:, 0] / penalty > worst
        return live, done, improvable, _pick(parent, index)


def beam_search(
    step: Callable[[Any, Int[Array, " rows"]], tuple[Step, Any]],
    take: Callable[[Any, Int[Array, " rows"]], Any],
    first: Step,
    state: Any,
    prompt_ids: Int[Array, "b l"],
    prompt_length: Int[Array, " b"],
    *,
    num_beams: int,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int = 0,
    min_new_tokens: int | Int[Array, ""] = 0,
    no_repeat_ngram: int = 3,
    length_penalty: float | Float[Array, ""] = 1.0,
    early_stopping: bool = False,
) -> Hypothesis:
    """The likeliest answer that `num_beams` parallel beams find, for each row.

    `first` and `state` are what reading the b prompts gave, as for `decode.greedy`, and `prompt_ids` are right-padded
    likewise. `take(state, rows)` is the state whose row i is row `rows[i]` of `state`; beams are rows of their own, so
    `step` is called with b * num_beams rows: those of one prompt stand together.

    An answer has at least `min_new_tokens` before its end token and at most `max_new_tokens` with it, and no n-gram of
    `no_repeat_ngram` tokens occurs twice in prompt and answer (0 allows it). A row is done when `num_beams` answers
    have ended and no live beam would beat the worst of them at its present length or, with `early_stopping`, as soon as
    they have ended. Rows do not see one another. Needs 2 * num_beams tokens in the vocabulary.

    Source: transformers' `generate(do_sample=False, num_beams=..., no_repeat_ngram_size=...)`, token for token. There
    `min_length` and `max_length` count the prompt as well: for an encoder-decoder's lone start token they are one more
    than the figures here.
    """
    batch, width = prompt_ids.shape
    beams, room = num_beams, width + max_new_tokens
    search = _Search(
        beams, max_new_tokens, min_new_tokens, eos_id, no_repeat_ngram, length_penalty, early_stopping, prompt_length
    )

    def spread(x: Array) -> Array:
        return jnp.repeat(x, beams, axis=0)

    def unfinished(carry):
        t, _, _, _, done, improvable = carry
        going = improvable & ~done.filled.all(-1) if early_stopping else improvable
        return (t < max_new_tokens) & going.any()

    def body(carry):
        t, state, parent, live, done, improvable = carry
        state = take(state, (beams * jnp.arange(batch)[:, None] + parent).reshape(-1))
        last = jnp.take_along_axis(live.text, (prompt_length + t - 1)[:, None, None], axis=2)
        said, state = step(state, last.reshape(-1))
        live, done, improvable, parent = search.advance(t, said, live, done, improvable)
        return t + 1, state, parent, live, done, improvable

    blank = jnp.broadcast_to(jnp.pad(prompt_ids, ((0, 0), (0, max_new_tokens)))[:, None], (batch, beams, room))
    zeros = jnp.zeros((batch, beams))
    # All beams begin alike, so only the first of them is let choose.
    live = _Live(blank, zeros.at[:, 1:].set(OUT))
    done = _Done(blank, zeros.astype(prompt_length.dtype), zeros + OUT, zeros > 0)
    improvable = jnp.ones(batch, bool)
    live, done, improvable, parent = search.advance(0, jax.tree.map(spread, first), live, done, improvable)
    carry = (jnp.int32(1), take(state, spread(jnp.arange(batch))), parent, live, done, improvable)
    done = jax.lax.while_loop(unfinished, body, carry)[4]

    best = jax.tree.map(lambda x: x[:, 0], done)
    place = jnp.arange(max_new_tokens)
    tokens = jnp.take_along_axis(best.text, prompt_length[:, None] + place, axis=1)
    return Hypothesis(jnp.where(place < best.length[:, None], tokens, pad_id), best.length, best.score)
