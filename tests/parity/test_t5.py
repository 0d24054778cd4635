"""T5 v1.1 against transformers' T5ForConditionalGeneration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.t5.modeling_t5 import T5Attention

from mgie_jax.models.t5 import T5Config, T5ForConditionalGeneration, relative_buckets
from tests.parity.carry import carry, relative_error

CONFIG = T5Config(
    vocab_size=83, d_model=48, d_kv=10, d_ff=96, num_layers=3, num_decoder_layers=2, num_heads=4,
    relative_attention_num_buckets=8, relative_attention_max_distance=12,
)  # fmt: skip
DUPLICATES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=CONFIG.vocab_size, d_model=CONFIG.d_model, d_kv=CONFIG.d_kv, d_ff=CONFIG.d_ff,
            num_layers=CONFIG.num_layers, num_decoder_layers=CONFIG.num_decoder_layers,
            num_heads=CONFIG.num_heads,
            relative_attention_num_buckets=CONFIG.relative_attention_num_buckets,
            relative_attention_max_distance=CONFIG.relative_attention_max_distance,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        )
    ).eval()  # fmt: skip
    # transformers 5 always builds T5 with its head tied.
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(CONFIG.vocab_size, CONFIG.d_model))
    assert not theirs.config.scale_decoder_outputs
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            value.add_(0.1 * torch.randn_like(value))
            if "relative_attention_bias" in name:
                value.normal_()
    state = {key: value.detach() for key, value in theirs.state_dict().items() if key not in DUPLICATES}
    ours = T5ForConditionalGeneration(CONFIG)
    inputs = jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), bool), jnp.zeros((1, 2), jnp.int32)
    template = jax.eval_shape(ours.init, jax.random.key(0), *inputs)["params"]
    return theirs, ours, {"params": carry(template, state)}


@pytest.fixture(scope="module")
def batch():
    ids, decoder_ids = (jax.random.randint(jax.random.key(i), shape, 0, CONFIG.vocab_size)
                        for i, shape in enumerate([(2, 17), (2, 15)]))  # fmt: skip
    mask = jnp.arange(17) < jnp.array([[17], [9]])
    return ids, mask, decoder_ids


def reference(theirs, ids, mask, decoder_ids):
    ids, mask, decoder_ids = (torch.tensor(np.asarray(x)).long() for x in (ids, mask, decoder_ids))
    with torch.no_grad():
        return theirs(
            input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids, output_hidden_states=True
        )


def test_encoder_decoder_and_logits(pair, batch):
    theirs, ours, params = pair
    ids, mask, decoder_ids = batch
    wanted = reference(theirs, *batch)
    encoded = ours.apply(params, ids, mask, method="encode")
    hidden = ours.apply(params, *batch)
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
    assert (
        relative_error(jnp.concatenate(pieces, 1), reference(theirs, *batch).decoder_hidden_states[-1]) < 1e-4
    )


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


def test_bfloat16_stays_near_float32(pair, batch):
    _, ours, params = pair
    low = T5ForConditionalGeneration(CONFIG, dtype=jnp.bfloat16).apply(params, *batch)
    assert low.dtype == jnp.bfloat16
    assert relative_error(low.astype(jnp.float32), ours.apply(params, *batch)) < 0.1


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
