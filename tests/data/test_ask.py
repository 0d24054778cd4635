"""Asking: what the networks are shown, what becomes of their answers, and that rows do not see one another."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
import transformers

from mgie_jax.data.ask import Asker, Question, Written
from mgie_jax.sharding import make_mesh
from mgie_jax.weights.tensors import ModelDirError
from tests.data.preparing import examples, picture
from tests.weights.t5_files import write_t5


@pytest.fixture(scope="module")
def t5_dir(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("t5") / "t5")


@pytest.fixture(scope="module")
def one_device():
    return make_mesh((1, 1, 1), jax.devices()[:1])


@pytest.fixture(scope="module")
def asker(tiny_model_dir, t5_dir, one_device):
    return Asker(tiny_model_dir, t5_dir, one_device, batch_size=3, max_new_tokens=16)


def test_the_question_is_the_released_one(asker):
    (question,) = asker.questions([replace(examples(1)[0], instruction=" add a frog ")])
    words = asker._tokenizer.tokenizer.decode([i for i in question.ids if i < 309])
    assert "add a frog  (in a short paragraph)" in words  # the test model asks in no other words
    assert question.fallback == "add a frog" and question.pixels.shape == (28, 28, 3)
    assert question.width % 64 == 0 and 0 <= question.width - len(question.ids) < 64


def test_what_cannot_be_asked_is_said(asker):
    good = examples(4)
    found = asker.questions([
        good[0], replace(good[1], source=picture(0)[:-200]), replace(good[2], target=b"no picture"),
        replace(good[3], instruction="many " * 300),
    ])  # fmt: skip
    assert isinstance(found[0], Question)
    assert "the picture before: is damaged" in found[1] and "the picture after: is not a picture" in found[2]
    assert "tokens long" in found[3]


def test_answers_are_cleaned_summarized_and_filled(asker, monkeypatch):
    questions = asker.questions(examples(3))
    monkeypatch.setattr(asker, "_answers", lambda questions: ["Long.", "", "Odd."])
    monkeypatch.setattr(asker, "_summaries", lambda texts: [{"Long.": "short", "Odd.": ""}[text] for text in texts])
    assert asker(questions) == [Written("short", False), Written(questions[1].fallback, True), Written("Odd.", False)]


def test_rows_do_not_see_one_another(asker):
    questions = [q for q in asker.questions(examples(9)) if q.width == asker.questions(examples(1))[0].width][:3]
    together = asker(questions)
    assert len({answer.text for answer in together}) > 1
    assert [asker([question])[0] for question in questions] == together


def test_the_answer_is_that_of_the_network_and_may_repeat_itself(asker, tiny_model_dir):
    """Against the MLLM run without a cache, its likeliest token taken each time."""
    (question,) = asker.questions(examples(1))
    ids = list(question.ids)
    mllm, params = asker._model.mllm, {"params": asker._mllm}
    read = jax.jit(lambda ids, mask, pixels: mllm.apply(params, ids, mask, pixels))
    says = jax.jit(lambda hidden: mllm.apply(params, hidden, method="logits").argmax())
    width = len(ids) + 16
    for _ in range(16):
        padded = np.array([ids + [0] * (width - len(ids))])
        hidden = read(padded, np.arange(width)[None] < len(ids), question.pixels[None])
        ids.append(int(says(hidden[0, len(ids) - 1])))
        if ids[-1] == asker._tokenizer.eos_id:
            break
    assert asker._answers([question]) == [asker._tokenizer.decode_answer(ids[len(question.ids) :])]


def test_summaries_are_those_of_transformers(asker, t5_dir):
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(t5_dir).eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(t5_dir)
    texts = ["The photo is dark.", "It becomes much brighter, flat and cool. The photo is cool."]
    with jax.set_mesh(asker._mesh):
        ours = asker._summaries(texts)
    for text, summary in zip(texts, ours, strict=True):
        ids = tokenizer("summarize the following paragraph in 32 words:\n\n" + text).input_ids + [1]
        with torch.no_grad():
            (told,) = theirs.generate(
                torch.tensor([ids]), num_beams=5, min_length=5, max_length=64, do_sample=False, no_repeat_ngram_size=3,
                pad_token_id=0, decoder_start_token_id=0, eos_token_id=1,
            )  # fmt: skip
        assert summary == tokenizer.decode(told, skip_special_tokens=True).strip()
    assert len(set(ours)) == 2


def test_without_a_summarizer_answers_stay_whole(asker, tiny_model_dir, one_device):
    whole = Asker(tiny_model_dir, None, one_device, batch_size=3, max_new_tokens=16)
    questions = whole.questions(examples(1))
    assert [answer.text for answer in whole(questions)] == asker._answers(questions)


def test_a_missing_summarizer_is_named_before_the_mllm_is_read(tiny_model_dir, tmp_path, one_device):
    with pytest.raises(ModelDirError, match="is not a folder"):
        Asker(tiny_model_dir, tmp_path / "absent", one_device, batch_size=1)
