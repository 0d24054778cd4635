"""Greedy decoding with a draft: the same answers as without, sooner."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from mgie_jax.text import decode
from mgie_jax.text.decode import Draft, Step, greedy, spare

VOCAB, EOS, WIDTH, HASHES = 17, 1, 6, 64
DRAFT = (9, 10, 11, 12, 13)


@struct.dataclass
class Seen:
    """A cache of a network whose memory is the tokens themselves, with the contract of `types.KVCache`."""

    tokens: jax.Array
    valid: jax.Array
    index: jax.Array

    def keep(self, valid):
        return self.replace(valid=jax.lax.dynamic_update_slice(self.valid, valid, (0, self.index - valid.shape[1])))


@struct.dataclass
class Network:
    """Says what a table has for all tokens read so far; after one of the draft mostly the next, as `follows` has it."""

    table: jax.Array
    follows: jax.Array

    def read(self, state, tokens, valid, count=None):
        rows, n = tokens.shape
        if count:
            jax.debug.callback(lambda end: count((n, int(end))), state.index + n)
        place = (0, state.index)
        state = Seen(
            jax.lax.dynamic_update_slice(state.tokens, tokens, place),
            jax.lax.dynamic_update_slice(state.valid, valid, place),
            state.index + n,
        )
        slots = jnp.arange(state.tokens.shape[1])
        seen = state.valid[:, None] & (slots <= (place[1] + jnp.arange(n))[:, None])
        position = jnp.cumsum(state.valid, axis=1)
        mix = (seen * (state.tokens + 1)[:, None] * (7 * position + position**2)[:, None]).sum(-1) % HASHES
        after = jnp.zeros((VOCAB, VOCAB)).at[jnp.array(DRAFT[:-1]), jnp.array(DRAFT[1:])].set(100.0)
        logits = self.table[mix] + jnp.where(self.follows[mix][..., None], after[tokens], 0)
        return Step(logits, mix[..., None].astype(jnp.float32)), state


def network(seed, rate, ends=0.0, begins=0.0):
    """`rate`: how often the draft is followed; `ends` and `begins` make its end and its beginning likelier."""
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((HASHES, VOCAB)).astype(np.float32)
    table[:, EOS] += ends
    table[:, DRAFT[0]] += begins
    return Network(jnp.asarray(table), jnp.asarray(rng.random(HASHES) < rate))


def prompts(seed, rows):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(2, VOCAB, (rows, WIDTH))), jnp.asarray(rng.integers(1, WIDTH + 1, rows))


def run(network, ids, lengths, *, new, drafted, ngram=3, count=None):
    rows = len(ids)
    draft = Draft(DRAFT, Seen.keep) if drafted else None
    shape = (rows, WIDTH + new + spare(rows, draft))
    empty = Seen(jnp.zeros(shape, ids.dtype), jnp.zeros(shape, bool), jnp.int32(0))
    said, state = network.read(empty, ids, jnp.arange(WIDTH) < lengths[:, None])
    first = jax.tree.map(lambda x: x[jnp.arange(rows), lengths - 1], said)
    out = greedy(
        partial(network.read, count=count), first, state, ids, lengths,
        max_new_tokens=new, eos_id=EOS, no_repeat_ngram=ngram, draft=draft,
    )  # fmt: skip
    return out, state


compiled = jax.jit(lambda *args, **options: run(*args, **options)[0], static_argnames=("new", "drafted", "ngram"))


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rate", [0, 0.5, 0.9, 1])
@pytest.mark.parametrize("rows", [1, 8])
def test_answers_are_those_of_plain_greedy_decoding(rate, rows):
    """Rows that begin the draft at different times or never, follow it to any of its tokens or through it, and end."""
    begun, through = set(), 0
    for seed in range(24 if rows == 1 else 6):
        asked = network(seed, rate, ends=0.8, begins=0.5), *prompts(seed, rows)
        plain, fast = (compiled(*asked, new=24, drafted=drafted) for drafted in (False, True))
        assert_same(fast, plain)
        for tokens in np.asarray(plain.tokens):
            begun.update(np.flatnonzero(tokens == DRAFT[0])[:1].tolist())
            through += " ".join(map(str, DRAFT)) in " ".join(map(str, tokens))
    assert len(begun) > 3 and (through > 0 or rate < 0.9) and (through == 0 or rate > 0)


@pytest.mark.parametrize("new", [1, 2, 3, 4, 5, 6, 7])
def test_answers_that_are_cut_short_within_the_draft(new):
    for seed in range(3):
        asked = network(seed, 1, begins=2.5), *prompts(seed, 8)
        plain, fast = (compiled(*asked, new=new, drafted=drafted) for drafted in (False, True))
        assert_same(fast, plain)
        assert (plain.length == new).any()


def test_the_ban_on_repetition_holds_within_the_draft():
    """The prompt has three tokens of the draft in a row: the third of them may not be said again."""
    asked = network(0, 1, begins=50), jnp.array([[5, *DRAFT[:3], 6, 7]]), jnp.array([WIDTH])
    plain, fast = (compiled(*asked, new=12, drafted=drafted) for drafted in (False, True))
    assert_same(fast, plain)
    assert plain.tokens[0, :2].tolist() == list(DRAFT[:2]) and plain.tokens[0, 2] != DRAFT[2]
    free, fast = (compiled(*asked, new=12, drafted=drafted, ngram=0) for drafted in (False, True))
    assert_same(fast, free)
    assert free.tokens[0, : len(DRAFT)].tolist() == list(DRAFT)


def passes(asked, **options):
    """(tokens, slots in use after it) of every pass, in order."""
    counted = []
    out, _ = jax.jit(partial(run, **options, count=counted.append))(*asked)
    jax.effects_barrier()
    return sorted(counted, key=lambda each: each[1]), out


def test_a_draft_is_read_at_once_when_all_have_come_to_it():
    """Rows wait for the last; then one pass reads the draft for all of them, and the token after it is known too."""
    asked = network(6, 1, ends=-9, begins=1.5), *prompts(6, 4)
    taken, out = passes(asked, new=20, drafted=True)
    begun = (np.asarray(out.tokens) == DRAFT[0]).argmax(1)
    assert begun.tolist() == [10, 3, 1, 0] and begun.max() <= decode.PATIENCE
    # The row that came last has that many tokens behind it and gains the draft's; the first one has the most to go.
    left = 20 - 1 - len(DRAFT)
    assert [n for n, _ in taken] == [1] * 10 + [len(DRAFT)] + [1] * left
    slow, _ = passes(asked, new=20, drafted=False)
    assert [n for n, _ in slow] == [1] * 19


def test_the_room_that_is_asked_for_is_enough_at_worst():
    """A row comes to the draft at once, waits in vain for one that never does, and is then refused all of it."""
    blank, begin = network(0, 0), jax.nn.one_hot(DRAFT[0], VOCAB)

    class Stubborn:
        def read(self, state, tokens, valid, count=None):
            said, state = blank.read(state, tokens, valid, count)
            at_once = (state.valid.sum(-1) == WIDTH) & (jnp.arange(2) == 0)  # row 0, having read the prompt
            logits = jnp.where(at_once[:, None], 1.0, -1.0) * begin - jax.nn.one_hot(EOS, VOCAB)
            return said._replace(logits=jnp.broadcast_to(logits[:, None], said.logits.shape)), state

    asked = Stubborn(), jnp.full((2, WIDTH), 3), jnp.array([WIDTH, WIDTH])
    counted = []
    out, state = run(*asked, new=30, drafted=True, ngram=0, count=counted.append)
    jax.effects_barrier()
    plain, _ = run(*asked, new=30, drafted=False, ngram=0)
    assert_same(out, plain)
    assert out.tokens[:, 0].tolist() == [DRAFT[0], 0] and DRAFT[0] not in out.tokens[1]
    ends = [end for _, end in counted]
    assert max(ends) <= state.tokens.shape[1]
    assert max(ends) >= state.tokens.shape[1] - 1, "it was not the worst case"
    assert [n for n, _ in sorted(counted, key=lambda each: each[1])][decode.PATIENCE] == len(DRAFT)
