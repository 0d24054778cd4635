"""A small T5 v1.1 folder with random weights, as transformers would have it."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mgie_jax.models.t5 import T5Config, T5ForConditionalGeneration
from mgie_jax.weights.rules import iter_torch
from mgie_jax.weights.tensors import write_tensors

TEXT = "summarize the following paragraph in 32 words: The photo is dark, flat and cool. It becomes much brighter."
SIZES = dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4)
PLAIN = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def save_t5_tokenizer(path: Path, limit: int = 512) -> int:
    """Writes a tokenizer with T5's special tokens that knows the letters and words of `TEXT`; returns its size."""
    words = sorted({f"\u2581{word}" for word in TEXT.split()})
    pieces = ["\u2581", *sorted({letter for letter in TEXT if letter != " "}), *words]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = Tokenizer(models.Unigram([*special, *((piece, -3.0) for piece in pieces)], unk_id=2))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=limit
    )
    fast.save_pretrained(path)
    return len(fast)


def write_t5(path: Path, seed: int = 0, **fields) -> Path:
    """The whole folder; `fields` go into its config.json."""
    path.mkdir()
    config = T5Config(vocab_size=save_t5_tokenizer(path), **SIZES)
    ids = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(T5ForConditionalGeneration(config).init, jax.random.key(0), ids, ids == 0, ids)["params"]
    rng = np.random.default_rng(seed)

    def draw(where, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        return 1 + 0.1 * noise if where[-1].key == "scale" else 0.3 * noise

    write_tensors(path, "model", iter_torch(jax.tree_util.tree_map_with_path(draw, shapes)))
    (path / "config.json").write_text(json.dumps(PLAIN | SIZES | {"vocab_size": config.vocab_size} | fields))
    return path
