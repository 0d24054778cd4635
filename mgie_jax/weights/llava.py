"""LLaVA's tokenizer with MGIE's tokens."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from mgie_jax.paths import AnyPath, local
from mgie_jax.text.prompt import IM_END, IM_PATCH, IM_START, IMG_TOKENS
from mgie_jax.weights.tensor import ModelDirError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TOKENS = (IM_PATCH, IM_START, IM_END, *IMG_TOKENS)
_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def load_llava_tokenizer(folder: AnyPath, rows: int) -> PreTrainedTokenizerFast:
    """The tokenizer of LLaVA's folder, with `<im_patch> <im_start> <im_end> [IMG0]..[IMG7]` after it where absent.

    Args:
      folder: holds tokenizer.json, or sentencepiece's tokenizer.model.
      rows: of the model's embedding, of which the last eight are [IMG0]..[IMG7].

    Raises:
      ModelDirError: there is no tokenizer, it is damaged, or its ids are not the embedding's rows.
    """
    from tokenizers import AddedToken
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast  # seconds to import

    if (folder / "tokenizer.json").is_file():
        kind = PreTrainedTokenizerFast
    elif not (folder / "tokenizer.model").is_file():
        raise ModelDirError(f"{folder} holds neither tokenizer.json nor tokenizer.model; copy LLaVA's tokenizer there")
    elif importlib.util.find_spec("sentencepiece") and importlib.util.find_spec("google.protobuf"):
        kind = LlamaTokenizer
    else:
        raise ModelDirError(f"{folder / 'tokenizer.model'} needs sentencepiece: pip install 'mgie_jax[torch]'")
    folder = local(folder, "LLaVA's tokenizer is read from disk")
    try:
        tokenizer = kind.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise ModelDirError(f"{folder} holds no usable tokenizer: {error}") from error
    vocabulary = tokenizer.get_vocab()
    for name, token in _SPECIAL.items():
        if getattr(tokenizer, name) is None and token in vocabulary:
            setattr(tokenizer, name, token)
    tokenizer.pad_token = tokenizer.unk_token
    # Those that are there keep their ids, and become special: no instruction may contain them, no text show them.
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in _TOKENS], special_tokens=True)
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary[token] for token in IMG_TOKENS]
    if ids != list(range(rows - len(ids), rows)) or max(vocabulary.values()) >= rows:
        raise ModelDirError(
            f"{folder}: the tokenizer has {len(vocabulary)} entries with [IMG0]..[IMG7] at {ids[0]}..{ids[-1]}, the "
            f"embedding {rows} rows, of which they must be the last eight; give the LLaVA that MGIE was trained from"
        )
    return tokenizer
