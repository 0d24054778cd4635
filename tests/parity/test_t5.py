"""T5 v1.1 against transformers' T5ForConditionalGeneration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from mgie_jax.models.t5 import T5Config, T5ForConditionalGeneration, relative_buckets
from tests.parity.carry import gradient_error, relative_error, relative_l2, tensor
from tests.parity.pairs import t5_pair

CONFIG = T5Config(
    vocab_size=83, d_model=48, d_kv=10, d_ff=96, num_layers=3, num_decoder_layers=2, num_heads=4,
    relative_attention_num_buckets=8, relative_attention_max_distance=12,
)  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    return t5_pair(CONFIG)


@pytest.fixture(scope="module")
def batch():
    ids, decoder_ids = (jax.random.randint(jax.random.key(i), shape, 0, CONFIG.vocab_size)
                        for i, shape in enumerate([(2, 17), (2, 15)]))  # fmt: skip
    mask = jnp.arange(17) < jnp.array([[17], [9]])
    return ids, mask, decoder_ids


def reference(theirs, ids, mask, decoder_ids):
    ids, mask, decoder_ids = (torch.tensor(np.asarray(x)).long() for x in (ids, mask, decoder_ids))
    with torch.no_grad():
        return theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids, output_hidden_states=True)


def test_encoder_decoder_and_logits(pair, batch):
    theirs, ours, params = pair
    ids, mask, decoder_ids = batch
    wanted = reference(theirs, *batch)
    encoded = jax.jit(lambda: ours.apply(params, ids, mask, method="encode"))()
    hidden = jax.jit(ours.apply)(params, *batch)
    real = np.asarray(mask)
    assert relative_error(encoded[real], wanted.encoder_last_hidden_state.numpy()[real]) < 1e-4
    assert relative_error(hidden, wanted.decoder_hidden_states[-1]) < 1e-4
    assert relative_error(ours.apply(params, hidden, method="logits"), wanted.logits) < 1e-4


def test_cached_decoding_token_by_token(pair, batch):
    theirs, ours, params = pair
    ids, mask, decoder_ids = batch
    encoded = ours.apply(params, ids, mask, method="encode")
    cache = ours.apply(params, encoded, mask, 20, method="start")
    step = jax.jit(lambda ids, cache: ours.apply(params, ids, cache, method="decode"))
    first, cache = step(decoder_ids[:, :3], cache)
    pieces = [first]
    for t in range(3, decoder_ids.shape[1]):
        hidden, cache = step(decoder_ids[:, t : t + 1], cache)
        pieces.append(hidden)
    assert relative_error(jnp.concatenate(pieces, 1), reference(theirs, *batch).decoder_hidden_states[-1]) < 1e-4


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("buckets, furthest", [(32, 128), (8, 12)])
def test_buckets_at_every_distance(bidirectional, buckets, furthest):
    config = T5Config(
        d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=2,
        relative_attention_num_buckets=buckets, relative_attention_max_distance=furthest,
    )  # fmt: skip
    place = np.arange(600)
    ours = relative_buckets(jnp.asarray(place), jnp.asarray(place), config, bidirectional)
    wanted = T5Attention._relative_position_bucket(
        torch.tensor(place[None, :] - place[:, None]), bidirectional, buckets, furthest
    )
    np.testing.assert_array_equal(ours, wanted)


def test_gradients(pair, batch):
    """For every parameter, the word embedding that opens both stacks among them."""
    theirs, ours, params = pair
    towards = jax.random.normal(jax.random.key(3), (2, 15, CONFIG.vocab_size))

    @jax.jit
    def gradients(params):
        def loss(params):
            logits = ours.apply(params, ours.apply(params, *batch), method="logits")
            return (logits * towards).sum()

        return jax.grad(loss)(params)

    ids, mask, decoder_ids = (tensor(x).long() for x in batch)
    theirs.zero_grad()
    logits = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits
    (logits * tensor(towards)).sum().backward()
    assert gradient_error(gradients(params)["params"], theirs) < 1e-4


def test_bfloat16_stays_near_the_float32_reference(pair, batch):
    theirs, _, params = pair
    low = jax.jit(T5ForConditionalGeneration(CONFIG, dtype=jnp.bfloat16).apply)(params, *batch)
    assert low.dtype == jnp.bfloat16
    assert relative_l2(low, reference(theirs, *batch).decoder_hidden_states[-1]) < 2e-2


def test_tied_embeddings_are_refused():
    with pytest.raises(ValueError, match="lm_head of its own"):
        T5Config(
            d_model=8,
            d_kv=4,
            d_ff=8,
            num_layers=1,
            num_decoder_layers=1,
            num_heads=2,
            tie_word_embeddings=True,
        )
