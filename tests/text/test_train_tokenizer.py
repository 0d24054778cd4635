"""The learned tokenizer: layout of the released vocabulary, nothing lost."""

import json

import pytest
from transformers import AutoTokenizer

from mgie_jax.text.train_tokenizer import save_tokenizer, train_bpe

TEXTS = [
    "make it brighter please",
    "The photo is dark, flat and cool. It becomes much brighter, with light filling every part of it.",
    "what will this image be like if 'increase the saturation'",
] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS, 320)


def test_special_tokens_frame_the_learned_pieces(tokenizer):
    size = len(tokenizer)
    assert size == 320
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>"]) == [0, 1, 2]
    last = ["<im_patch>", "<im_start>", "<im_end>", *(f"[IMG{i}]" for i in range(8))]
    assert tokenizer.convert_tokens_to_ids(last) == list(range(size - 11, size))
    assert tokenizer.pad_token_id == tokenizer.unk_token_id == 0


@pytest.mark.parametrize(
    "text",
    [
        "make it Brighter",
        " leading",
        "two  blanks\n\ttab ",
        "Ünïcödé ☃ ▁ 日本 🎨",
        "\x00\x7f",
        "don't 1,000.5%",
    ],
)
def test_any_text_survives(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert 0 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_frequent_words_are_single_tokens():
    tokenizer = train_bpe(TEXTS, 400)
    assert tokenizer.tokenize(" brighter light") == ["Ġbrighter", "Ġlight"]
    assert tokenizer.tokenize(" Brighter") != tokenizer.tokenize(" brighter")


def test_few_texts_fill_a_large_vocabulary():
    tokenizer = train_bpe(TEXTS, 32011)
    assert len(tokenizer) == 32011
    assert tokenizer.convert_tokens_to_ids(["<im_patch>", "[IMG7]"]) == [32000, 32010]
    assert tokenizer.decode(tokenizer("<unused900> it")["input_ids"], skip_special_tokens=True) == "<unused900> it"
    assert max(tokenizer("<unused900>")["input_ids"]) < 900


def test_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded(TEXTS[1])["input_ids"] == tokenizer(TEXTS[1])["input_ids"]
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (1, 2, 0)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_training_is_deterministic():
    assert train_bpe(TEXTS, 330).get_vocab() == train_bpe(TEXTS, 330).get_vocab()


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="at least 270"):
        train_bpe(TEXTS, 269)
