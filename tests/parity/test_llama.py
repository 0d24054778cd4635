"""LLaMA against transformers' LlamaForCausalLM."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mgie_jax.models.llama import LlamaConfig, LlamaForCausalLM, init_cache, text_positions
from tests.parity.carry import array, gradient_error, relative_error, relative_l2, tensor
from tests.parity.pairs import llama_pair, llama_template

CONFIG = LlamaConfig(
    vocab_size=97, hidden_size=64, intermediate_size=112, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, rope_theta=500.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    return llama_pair(CONFIG)


@partial(jax.jit, static_argnums=0)
def forward(model, params, ids, mask):
    embeds = model.apply(params, ids, method="embed")
    hidden, _ = model.apply(params, embeds, text_positions(mask), mask)
    return hidden, model.apply(params, hidden, method="logits")


def theirs_forward(theirs, ids, mask):
    ids, mask = torch.tensor(np.asarray(ids)), torch.tensor(np.asarray(mask))
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        out = theirs(
            input_ids=ids.long(),
            attention_mask=mask.long(),
            position_ids=positions,
            output_hidden_states=True,
        )
    return out.hidden_states[-1].numpy(), out.logits.numpy()


def padded_batch(side):
    ids = jax.random.randint(jax.random.key(1), (3, 12), 0, CONFIG.vocab_size)
    lengths = jnp.array([[12], [7], [1]])
    place = jnp.arange(12)
    return ids, place < lengths if side == "right" else place >= 12 - lengths


@pytest.mark.parametrize("side", ["left", "right"])
def test_hidden_states_and_logits_of_a_padded_batch_with_grouped_queries(pair, side):
    theirs, ours, params = pair
    ids, mask = padded_batch(side)
    for mine, wanted in zip(forward(ours, params, ids, mask), theirs_forward(theirs, ids, mask), strict=True):
        assert relative_error(mine[mask], wanted[np.asarray(mask)]) < 1e-4


def test_tied_embeddings_are_the_head():
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    theirs, ours, params = llama_pair(config)
    ids, mask = jnp.arange(10)[None], jnp.ones((1, 10), bool)
    assert relative_error(forward(ours, params, ids, mask)[1], theirs_forward(theirs, ids, mask)[1]) < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
def test_cached_pieces_give_the_states_of_one_pass(pair, side):
    """A padded prompt, then tokens one by one, equals each row's whole text in the reference."""
    theirs, ours, params = pair
    ids, mask = padded_batch(side)
    more = jax.random.randint(jax.random.key(2), (3, 4), 0, CONFIG.vocab_size)
    cache = init_cache(CONFIG, 3, 16)

    @jax.jit
    def step(params, ids, mask, cache):
        start = cache.next_position[:, None]
        return ours.apply(params, ours.apply(params, ids, method="embed"), start + text_positions(mask), mask, cache)

    hidden, cache = step(params, ids, mask, cache)
    pieces = []
    for token in more.T:
        hidden, cache = step(params, token[:, None], jnp.ones((3, 1), bool), cache)
        pieces.append(hidden[:, 0])
    for row in range(3):
        alone = jnp.concatenate([ids[row][mask[row]], more[row]])[None]
        wanted, _ = theirs_forward(theirs, alone, jnp.ones_like(alone, bool))
        assert relative_error(jnp.stack(pieces)[:, row], wanted[0, -4:]) < 1e-4


@pytest.mark.parametrize("policy", ["dots", "blocks"])
def test_rematerialised_gradients_are_the_same(pair, policy):
    _, ours, params = pair
    ids, mask = padded_batch("right")

    def loss(params, model):
        return jnp.square(forward(model, params, ids, mask)[0]).mean()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    plain, again = gradient(params, ours), gradient(params, LlamaForCausalLM(CONFIG, remat=policy))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


def test_gradients(pair):
    """Of a loss on states and logits of a padded batch, for every parameter and the embeddings going in."""
    theirs, ours, params = pair
    ids, mask = padded_batch("left")
    towards = [
        jax.random.normal(jax.random.key(i), (3, 12, width)) * mask[..., None]
        for i, width in enumerate([CONFIG.hidden_size, CONFIG.vocab_size])
    ]

    @jax.jit
    def gradients(params, extra):
        def loss(params, extra):
            embeds = ours.apply(params, ids, method="embed") + extra
            hidden, _ = ours.apply(params, embeds, text_positions(mask), mask)
            return (hidden * towards[0]).sum() + (ours.apply(params, hidden, method="logits") * towards[1]).sum()

        return jax.grad(loss, argnums=(0, 1))(params, extra)

    extra = jax.random.normal(jax.random.key(3), (3, 12, CONFIG.hidden_size))
    grads, extra_grad = gradients(params, extra)
    x = tensor(extra, grad=True)
    theirs.zero_grad()
    out = theirs(
        inputs_embeds=theirs.model.embed_tokens(tensor(ids).long()) + x, attention_mask=tensor(mask).long(),
        position_ids=tensor(text_positions(mask)).long(), output_hidden_states=True,
    )  # fmt: skip
    ((out.hidden_states[-1] * tensor(towards[0])).sum() + (out.logits * tensor(towards[1])).sum()).backward()
    assert gradient_error(grads["params"], theirs) < 1e-4
    assert relative_error(extra_grad, array(x.grad)) < 1e-4


def test_bfloat16_stays_near_the_float32_reference_and_keeps_float32_logits(pair):
    theirs, _, params = pair
    ids, mask = padded_batch("right")
    low = forward(LlamaForCausalLM(CONFIG, dtype=jnp.bfloat16), params, ids, mask)
    assert (low[0].dtype, low[1].dtype) == (jnp.bfloat16, jnp.float32)
    for mine, wanted in zip(low, theirs_forward(theirs, ids, mask), strict=True):
        assert relative_l2(mine[mask], wanted[np.asarray(mask)]) < 2e-2


def test_a_prompt_longer_than_the_cache_is_refused(pair):
    _, ours, params = pair
    ids, mask = padded_batch("right")
    with pytest.raises(ValueError, match="12 tokens do not fit a cache of 5 slots"):
        embeds = ours.apply(params, ids, method="embed")
        ours.apply(params, embeds, text_positions(mask), mask, init_cache(CONFIG, 3, 5))


def test_unknown_remat_policy_is_refused():
    with pytest.raises(ValueError, match="remat policy 'some'"):
        llama_template(LlamaForCausalLM(CONFIG, remat="some"))
