"""Language models of transformers with random weights, and ours with the same: what several test files need."""

import jax
import jax.numpy as jnp
import torch
import transformers

from mgie_jax.models.llama import LlamaConfig, LlamaForCausalLM
from mgie_jax.models.t5 import T5Config, T5ForConditionalGeneration
from tests.parity.carry import carry, stir


def llama_pair(config: LlamaConfig, seed: int = 0, scale: float = 0.2):
    """(theirs, ours, our parameters); weights have the standard deviation `scale`."""
    torch.manual_seed(seed)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size, num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads, num_key_value_heads=config.num_key_value_heads,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_word_embeddings, initializer_range=scale,
            attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    stir(theirs)
    ours = LlamaForCausalLM(config)
    state = theirs.state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    return theirs, ours, {"params": carry(llama_template(ours), state)}


def llama_template(model: LlamaForCausalLM) -> dict:
    inputs = jnp.zeros((1, 2, model.config.hidden_size)), jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


T5_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def t5_pair(config: T5Config, seed: int = 0, head_scale: float = 1.0):
    """(theirs, ours, our parameters); `head_scale` is that of `lm_head`: a small one leaves many tokens likely."""
    torch.manual_seed(seed)
    theirs = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=config.vocab_size, d_model=config.d_model, d_kv=config.d_kv, d_ff=config.d_ff,
            num_layers=config.num_layers, num_decoder_layers=config.num_decoder_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.relative_attention_num_buckets,
            relative_attention_max_distance=config.relative_attention_max_distance,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
        )
    ).eval()  # fmt: skip
    # transformers 5 always builds T5 with its head tied.
    head = head_scale * torch.randn(config.vocab_size, config.d_model)
    theirs.lm_head.weight = torch.nn.Parameter(head)
    assert not theirs.config.scale_decoder_outputs
    stir(theirs)
    with torch.no_grad():
        theirs.lm_head.weight.copy_(head)
        for name, value in theirs.named_parameters():
            if "relative_attention_bias" in name:
                value.normal_()
    state = {key: value for key, value in theirs.state_dict().items() if key not in T5_COPIES}
    ours = T5ForConditionalGeneration(config)
    inputs = jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), bool), jnp.zeros((1, 2), jnp.int32)
    template = jax.eval_shape(ours.init, jax.random.key(0), *inputs)["params"]
    return theirs, ours, {"params": carry(template, state)}
