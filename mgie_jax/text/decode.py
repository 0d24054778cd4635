"""Greedy decoding as one compiled program, for any network that can be stepped some tokens at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

PATIENCE = 16  # turns that a row waits for others of its batch, at most


class Step(NamedTuple):
    """What a network says after reading tokens: logits for the next, and the states they are read from."""

    logits: Float[Array, "*b vocab"]
    hidden: Float[Array, "*b d"]


class Draft(NamedTuple):
    """Tokens that are expected to follow the first of them, once it is chosen.

    Attributes:
        tokens: two or more ids.
        keep: `keep(state, valid)` is the state without those of the n tokens read last that are not `valid` (b, n).
    """

    tokens: tuple[int, ...]
    keep: Callable[[Any, Bool[Array, "b n"]], Any]


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


class _Answer(NamedTuple):
    """The rows on their way: prompts with their answers right behind them, and which rows want another token."""

    text: Int[Array, "b l"]
    hidden: Float[Array, "b new d"]
    length: Int[Array, " b"]
    going: Bool[Array, " b"]


@dataclass(frozen=True)
class _Decoding:
    """What stays the same from token to token; the fields are `greedy`'s arguments."""

    step: Callable[[Any, Int[Array, "b n"], Bool[Array, "b n"]], tuple[Step, Any]]
    prompt_length: Int[Array, " b"]
    max_new_tokens: int
    eos_id: int
    no_repeat_ngram: int
    draft: Draft | None

    def record(self, said: Step, answer: _Answer, rows: Bool[Array, " b"]) -> _Answer:
        """With the token that each of these rows chooses, and the state it is chosen from."""
        place = self.prompt_length + answer.length
        banned = repeats_ngram(answer.text, place, self.no_repeat_ngram, said.logits.shape[-1])
        token = jnp.argmax(jnp.where(banned, -jnp.inf, said.logits), axis=-1).astype(answer.text.dtype)
        length = answer.length + rows
        more = (token != self.eos_id) & (length < self.max_new_tokens)
        return _Answer(
            text=_put(answer.text, token, place, rows),
            hidden=_put(answer.hidden, said.hidden, answer.length, rows),
            length=length,
            going=answer.going & (more | ~rows),
        )

    def latest(self, answer: _Answer) -> Int[Array, " b"]:
        return jnp.take_along_axis(answer.text, (self.prompt_length + answer.length - 1)[:, None], axis=1)[:, 0]

    def waiting(self, answer: _Answer, drafted: bool | Bool[Array, ""]) -> Bool[Array, " b"]:
        """The rows that have come to the draft, which is not read yet."""
        if self.draft is None:
            return jnp.zeros_like(answer.going)
        return answer.going & (self.latest(answer) == self.draft.tokens[0]) & jnp.logical_not(drafted)

    def write(self, state: Any, answer: _Answer, drafted: bool | Bool[Array, ""]) -> tuple[Any, _Answer]:
        """Token by token, until no row goes on that is not waiting, or one has waited long enough."""

        def unready(carry: tuple) -> Bool[Array, ""]:
            _, answer, waited = carry
            return (answer.going & ~self.waiting(answer, drafted)).any() & (waited < PATIENCE)

        def turn(carry: tuple) -> tuple:
            state, answer, waited = carry
            wait = self.waiting(answer, drafted)
            rows = answer.going & ~wait
            said, state = self.step(state, self.latest(answer)[:, None], rows[:, None])
            return state, self.record(_at(said, 0), answer, rows), waited + wait.any()

        return jax.lax.while_loop(unready, turn, (state, answer, jnp.int32(0)))[:2]

    def speculate(self, state: Any, answer: _Answer) -> tuple[Any, _Answer]:
        """The whole draft in one pass, for the rows that wait for it; the others read their latest token."""
        tokens, place = jnp.array(self.draft.tokens, answer.text.dtype), jnp.arange(len(self.draft.tokens))
        wait = self.waiting(answer, drafted=False)
        read = jnp.where(wait[:, None], tokens, self.latest(answer)[:, None])
        said, state = self.step(state, read, answer.going[:, None] & (wait[:, None] | (place == 0)))

        def accept(carry: tuple, i: Int[Array, ""]) -> tuple:
            found, rows = carry
            found = self.record(_at(said, i), found, rows)
            # What is said after a token of the draft counts where that token is the one chosen.
            return (found, rows & wait & found.going & (self.latest(found) == tokens[i + 1])), None

        (found, _), _ = jax.lax.scan(accept, (answer, answer.going), place)
        return self.draft.keep(state, place < (found.length - answer.length)[:, None]), found


def spare(rows: int, draft: Draft | None) -> int:
    """For how many tokens more than the answers' a state must have room where `rows` are decoded with a draft."""
    return len(draft.tokens) - 1 + (PATIENCE if rows > 1 else 0) if draft else 0


def greedy(
    step: Callable[[Any, Int[Array, "b n"], Bool[Array, "b n"]], tuple[Step, Any]],
    first: Step,
    state: Any,
    prompt_ids: Int[Array, "b l"],
    prompt_length: Int[Array, " b"],
    *,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int = 0,
    no_repeat_ngram: int = 3,
    draft: Draft | None = None,
) -> Decoded:
    """The likeliest next token, again and again, until every row has ended or has `max_new_tokens`.

    `first` and `state` are what reading the prompt gave: `first` at each row's last prompt token, `state` (a KV cache,
    say) whatever `step(state, tokens, valid) -> (Step, state)` wants. That reads n tokens a row and says something
    after each; those which are not `valid`, always behind those which are, must leave no trace in their row.
    `prompt_ids` are right-padded, with `prompt_length` real tokens a row. No token completes an n-gram of
    `no_repeat_ngram` tokens that its row's prompt and answer already hold; 0 allows them all. Rows do not see one
    another. Source: transformers' `generate` with `do_sample=False, no_repeat_ngram_size=3`.

    A `draft` changes no token, only how soon it is known (speculative decoding, arXiv 2211.17192, of the greedy kind):
    a row that chooses the draft's first token waits until all that go on have, or for `PATIENCE` turns. One pass then
    reads the whole draft, and of what it says each row takes what it would have chosen token by token. `state` has
    room for `max_new_tokens` and `spare` further tokens.
    """
    rows = len(prompt_ids)
    decoding = _Decoding(step, prompt_length, max_new_tokens, eos_id, no_repeat_ngram, draft)
    # The answer goes right behind each row's prompt: n-grams run across the seam. The first token needs no step.
    answer = _Answer(
        text=jnp.pad(prompt_ids, ((0, 0), (0, max_new_tokens))),
        hidden=jnp.zeros((rows, max_new_tokens, first.hidden.shape[-1]), first.hidden.dtype),
        length=jnp.zeros(rows, prompt_length.dtype),
        going=jnp.ones(rows, bool),
    )
    answer = decoding.record(first, answer, answer.going)

    def through_draft(carry: tuple) -> tuple:
        state, answer, drafted = carry
        state, answer = decoding.write(state, answer, drafted)
        wait = decoding.waiting(answer, drafted)
        return *jax.lax.cond(wait.any(), decoding.speculate, lambda *same: same, state, answer), jnp.array(True)

    if draft is None:
        _, answer = decoding.write(state, answer, drafted=True)
    else:  # Two turns at most: up to the draft and through it, then what is left. One loop, to compile `step` once.
        _, answer, _ = jax.lax.while_loop(
            lambda carry: carry[1].going.any(), through_draft, (state, answer, jnp.array(False))
        )
    place = jnp.arange(max_new_tokens)
    tokens = jnp.take_along_axis(answer.text, prompt_length[:, None] + place, axis=1)
    return Decoded(jnp.where(place < answer.length[:, None], tokens, pad_id), answer.hidden, answer.length)


def _at(said: Step, place: int | Int[Array, ""]) -> Step:
    return Step(said.logits[:, place], said.hidden[:, place])


def _put(into: Array, what: Array, at: Int[Array, " b"], rows: Bool[Array, " b"]) -> Array:
    """`into` (b, n, ...) with `what` (b, ...) at each of these rows' own place."""
    at = jnp.where(rows, at, into.shape[1])  # beyond the end: dropped
    return jax.vmap(lambda row, x, i: row.at[i].set(x, mode="drop"))(into, what, at)
