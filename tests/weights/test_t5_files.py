"""T5 folders: what transformers writes is read, what is another network is refused."""

import json

import jax
import numpy as np
import pytest

from mgie_jax.models.t5 import T5Config
from mgie_jax.weights.t5 import Summarization, load_t5, load_t5_config, load_t5_tokenizer
from mgie_jax.weights.tensors import ModelDirError
from tests.parity.pairs import t5_pair
from tests.weights.t5_files import TEXT, save_t5_tokenizer, write_t5

CONFIG = T5Config(vocab_size=83, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4)


@pytest.fixture
def folder(tmp_path):
    return write_t5(tmp_path / "t5")


def test_what_transformers_saves_is_read(tmp_path):
    theirs, _, params = t5_pair(CONFIG)
    theirs.save_pretrained(tmp_path)
    config, told = load_t5_config(tmp_path)
    assert (config, told) == (CONFIG, Summarization())
    loaded = load_t5(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.tree.map(np.asarray, params["params"]))


def test_a_checkpoint_says_how_it_wants_to_summarize(folder):
    file = folder / "config.json"
    asked = {"prefix": "summarize: ", "length_penalty": 2.0, "early_stopping": True, "max_length": 200}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"task_specific_params": {"summarization": asked}}))
    assert load_t5_config(folder)[1] == Summarization("summarize: ", 2.0, True)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"feed_forward_proj": "relu"}, "feed_forward_proj is 'relu', supported is 'gated-gelu'"),
        ({"tie_word_embeddings": True}, "lm_head of its own"),
        ({"model_type": "bart"}, "model_type is 'bart'"),
        ({"d_model": None}, "d_model"),
        ({"eos_token_id": 2}, "eos_token_id"),
    ],
    ids=str,
)
def test_another_network_is_refused(folder, change, words):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelDirError, match=words):
        load_t5_config(folder)


def test_what_is_missing_is_named(folder, tmp_path):
    config, _ = load_t5_config(folder)
    with pytest.raises(ModelDirError, match="is not a folder"):
        load_t5_config(tmp_path / "absent")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelDirError, match="tokenizer.json is missing; .*save_pretrained"):
        load_t5_tokenizer(folder, config)
    with pytest.raises(ModelDirError, match="shared.weight"):
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(fields | {"vocab_size": 99}))
        load_t5(folder)


def test_a_text_ends_with_the_end_token_and_a_long_one_is_cut(folder):
    config, _ = load_t5_config(folder)
    tokenizer = load_t5_tokenizer(folder, config)
    ids = tokenizer.encode(TEXT)
    assert ids[-1] == 1 and 1 not in ids[:-1] and tokenizer.decode(ids) == TEXT
    save_t5_tokenizer(folder, limit=12)
    assert load_t5_tokenizer(folder, config).encode(TEXT) == [*ids[:11], 1] and len(ids) > 12


def test_a_tokenizer_of_another_model_is_refused(folder):
    with pytest.raises(ModelDirError, match="tokenizer of another model"):
        load_t5_tokenizer(folder, CONFIG.__class__(**vars(CONFIG) | {"vocab_size": 20}))
