"""A byte-level BPE tokenizer learned from the project's own texts, laid out as the released vocabulary."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mgie_jax.text.prompt import IM_END, IM_PATCH, IM_START, IMG_TOKENS

_FIRST = ("<unk>", "<s>", "</s>")
_LAST = (IM_PATCH, IM_START, IM_END, *IMG_TOKENS)
_FLOOR = len(_FIRST) + 256 + len(_LAST)


def train_bpe(texts: Iterable[str], vocab_size: int, model_max_length: int = 512) -> PreTrainedTokenizerFast:
    """Learns a tokenizer of `vocab_size` entries.

    Layout: `<unk> <s> </s>`, the 256 bytes, the learned pieces, entries that no text has where the texts hold too few
    distinct pieces, then at the end `<im_patch> <im_start> <im_end> [IMG0]..[IMG7]` as in the released 32011-entry
    vocabulary. Pad is `<unk>`; `<s>` is put first,
    as LLaMA does. Bytes are in the vocabulary, so that any text survives encoding and decoding unchanged.

    Raises:
      ValueError: `vocab_size` leaves no room beside special tokens and bytes.
    """
    if vocab_size < _FLOOR:
        raise ValueError(f"vocab_size must be at least {_FLOOR} (special tokens and 256 bytes), got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(_LAST),
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in _FIRST],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer = _filled(tokenizer, vocab_size - len(_LAST))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in _LAST])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        padding_side="right",
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )


def _filled(tokenizer: Tokenizer, size: int) -> Tokenizer:
    """The tokenizer with `size` entries; those added are made by no merge, so that nothing is encoded as them."""
    fields = json.loads(tokenizer.to_str())
    vocabulary = fields["model"]["vocab"]
    fields["model"]["vocab"] = vocabulary | {f"<unused{i}>": i for i in range(len(vocabulary), size)}
    return Tokenizer.from_str(json.dumps(fields))


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` into `folder`.

    transformers 5 names its own class in the configuration, which transformers 4 does not know; both know
    `PreTrainedTokenizerFast`.
    """
    folder = Path(folder)
    tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    fields = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(fields, indent=2) + "\n")
    special = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
