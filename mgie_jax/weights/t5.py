"""A T5 v1.1 (Flan-T5) folder as transformers writes it: config.json, the weights in any layout, tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, SupportsInt

import jax
import jax.numpy as jnp
import numpy as np

from mgie_jax.models.t5 import T5Config, T5ForConditionalGeneration
from mgie_jax.paths import AnyPath, to_path
from mgie_jax.weights import tables
from mgie_jax.weights.configs import check_fixed, from_fields
from mgie_jax.weights.files import open_tokenizer
from mgie_jax.weights.rules import KeyMismatch, Place, from_torch
from mgie_jax.weights.tensors import ModelDirError, open_tensors, read_json

EOS = 1
MAX_TOKENS = 2048  # of a text where the tokenizer names no limit
# What transformers takes for granted where config.json is silent: the first T5, which is another network.
_SILENT = {"feed_forward_proj": "relu", "tie_word_embeddings": True}


@dataclass(frozen=True)
class Summarization:
    """How a checkpoint wants to be asked for a summary: `task_specific_params` of its config.json.

    transformers' summarization pipeline obeys them where its caller says nothing else.
    """

    prefix: str = ""
    length_penalty: float = 1.0
    early_stopping: bool = False


def load_t5_config(path: str | AnyPath) -> tuple[T5Config, Summarization]:
    """The sizes of a T5 folder and how it summarizes; no weights are read.

    Raises:
      ModelDirError: there is no such folder or config.json, or it describes another network than T5 v1.1.
    """
    path = to_path(path)
    if not path.is_dir():
        raise ModelDirError(f"{path} is not a folder; give the folder of a T5 model, as transformers writes it")
    file = path / "config.json"
    fields = _SILENT | read_json(file)
    # transformers 5 calls every head tied and tells T5 v1.1 by the scale it does not have.
    fields["tie_word_embeddings"] = fields.get("scale_decoder_outputs", fields["tie_word_embeddings"])
    if fields.get("num_decoder_layers") is None:
        fields["num_decoder_layers"] = fields.get("num_layers")
    check_fixed("t5", fields, str(file))
    tasks = fields.get("task_specific_params")
    asked = tasks.get("summarization") if isinstance(tasks, dict) else None
    told = from_fields(Summarization, asked or {}, f"{file}: task_specific_params.summarization")
    return from_fields(T5Config, fields, str(file)), told


def load_t5(
    path: str | AnyPath, dtype: Any = jnp.float32, place: Place = lambda path, leaf: jnp.asarray(np.asarray(leaf))
) -> dict:
    """The parameters of a T5 folder; see `files.load_model_dir` for the arguments.

    Raises:
      ModelDirError: anything is missing, damaged, or of other shapes than config.json says.
    """
    config, _ = load_t5_config(path)
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
    shapes = jax.eval_shape(T5ForConditionalGeneration(config).init, jax.random.key(0), ids, mask, ids)["params"]
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    try:
        return from_torch(template, open_tensors(path), "T5", tables.T5, place)
    except KeyMismatch as error:
        raise ModelDirError(f"{path}: {error}") from error


@dataclass(frozen=True)
class T5Tokenizer:
    """Text <-> ids; a text of more than `limit` tokens loses its end, as with transformers' `truncation=True`."""

    tokenizer: Any
    limit: int

    def encode(self, text: str) -> list[int]:
        """Ids, the end token last."""
        ids = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return [*ids[: self.limit - 1], self.tokenizer.eos_token_id]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """The text of generated ids, without special tokens."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True).strip()


def load_t5_tokenizer(path: str | AnyPath, config: T5Config) -> T5Tokenizer:
    """The tokenizer.json of a T5 folder.

    Raises:
      ModelDirError: it is missing or damaged, or does not fit the network's vocabulary.
    """
    path = to_path(path)
    if not (path / "tokenizer.json").is_file():
        raise ModelDirError(
            f"{path / 'tokenizer.json'} is missing; load the tokenizer in transformers and save_pretrained it there"
        )
    try:
        tokenizer = open_tokenizer(path)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise ModelDirError(f"{path} holds no usable tokenizer: {error}") from error
    if tokenizer.eos_token_id != EOS or len(tokenizer) > config.vocab_size:
        raise ModelDirError(
            f"{path} holds the tokenizer of another model: {len(tokenizer)} tokens of which the end token is "
            f"{tokenizer.eos_token_id}, the network has {config.vocab_size} and ends with {EOS}"
        )
    return T5Tokenizer(tokenizer, min(tokenizer.model_max_length, MAX_TOKENS))
