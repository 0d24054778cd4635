"""Examples to expressive instructions: a long answer of the MLLM, cleaned, then summarized by T5.

Source: `process_data.ipynb` of the reference implementation, for whole batches. Two programs run, each compiled once
for every length (in steps of `BUCKET` tokens) of what they read.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from mgie_jax import edit
from mgie_jax.data.records import Example
from mgie_jax.data.summarize import summarize
from mgie_jax.models.mgie import MGIE
from mgie_jax.models.t5 import T5ForConditionalGeneration
from mgie_jax.paths import AnyPath
from mgie_jax.photo import CLIP_MEAN, CLIP_STD, clip_pixels, decode_photo
from mgie_jax.sharding import batch_sharding, param_sharding
from mgie_jax.text.prompt import PromptTokenizer, pad_batch
from mgie_jax.weights.files import load_mllm, load_tokenizer
from mgie_jax.weights.model_config import load_config
from mgie_jax.weights.rules import sharded
from mgie_jax.weights.t5 import Summarization, T5Tokenizer, load_t5, load_t5_config, load_t5_tokenizer

WISH = "  (in a short paragraph)"  # behind the question, two blanks and all
SUMMARY = "summarize the following paragraph in 32 words:\n\n{text}"
BUCKET = 64
MAX_NEW_TOKENS = 1024


@dataclasses.dataclass(frozen=True)
class Question:
    """What the MLLM is shown of one example.

    Attributes:
      ids: of the prompt.
      pixels: the picture before, CLIP-normalised.
      fallback: the person's own words, which stand where the MLLM says nothing.
    """

    ids: list[int]
    pixels: Float[np.ndarray, "s s 3"]
    fallback: str

    @property
    def width(self) -> int:
        """The length it is padded to."""
        return bucket(len(self.ids))


@dataclasses.dataclass(frozen=True)
class Written:
    """An expressive instruction; `empty` where the MLLM said nothing and it is the person's own words."""

    text: str
    empty: bool


@partial(jax.jit, static_argnames=("model", "max_new_tokens", "eos_id", "pad_id"))
def answer(
    model: MGIE, params: PyTree, ids: Int[Array, "b l"], mask: Bool[Array, "b l"], pixels: Float[Array, "b s s 3"],
    *, max_new_tokens: int, eos_id: int, pad_id: int,
) -> tuple[Int[Array, "b new"], Int[Array, " b"]]:  # fmt: skip
    """Tokens and their number. Unlike when it edits, the MLLM may repeat itself: so it was asked originally."""
    _, said = edit.answer(
        model, {"mllm": params}, ids, mask, pixels,
        max_new_tokens=max_new_tokens, eos_id=eos_id, pad_id=pad_id, no_repeat_ngram=0,
    )  # fmt: skip
    return said.tokens, said.length


summary = jax.jit(summarize, static_argnames=("model", "length_penalty", "early_stopping"))


class Asker:
    """The MLLM and the summarizer on a mesh.

    Args:
      model_dir: a model directory, of which the MLLM and its vision tower are read.
      summarizer_dir: a T5 v1.1 folder as transformers writes it; None keeps the cleaned answers whole.
      mesh: of this process's own devices.
      batch_size: examples asked together; padded up to what the mesh's `data` and `fsdp` divide.
      max_new_tokens: the longest answer.
      dtype: of the weights and the arithmetic.

    Raises:
      ModelDirError: a model is missing or damaged.
    """

    def __init__(
        self, model_dir: AnyPath, summarizer_dir: AnyPath | None, mesh: Mesh, *,
        batch_size: int, max_new_tokens: int = MAX_NEW_TOKENS, dtype: Any = jnp.float32,
    ):  # fmt: skip
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self._mesh, self._rows = mesh, _up(batch_size, mesh.shape["data"] * mesh.shape["fsdp"])
        config = load_config(model_dir)
        prompt = dataclasses.replace(config.prompt, question=config.prompt.question + WISH)
        own = load_tokenizer(model_dir, config)
        self._tokenizer = PromptTokenizer(own.tokenizer, own.num_patches, prompt)
        self._image_size = config.mllm.vision.image_size
        self._model = MGIE(config, dtype)
        place = sharded(partial(param_sharding, mesh))
        # The small files of both before the weights of either.
        self._t5: tuple[T5ForConditionalGeneration, T5Tokenizer, Summarization] | None = None
        if summarizer_dir is not None:
            t5_config, told = load_t5_config(summarizer_dir)
            t5_tokenizer = load_t5_tokenizer(summarizer_dir, t5_config)
            self._t5 = T5ForConditionalGeneration(t5_config, dtype), t5_tokenizer, told
        self._mllm = load_mllm(model_dir, config, dtype, lambda path, leaf: place(("mllm", *path), leaf))
        self._t5_params = load_t5(summarizer_dir, dtype, place) if summarizer_dir is not None else None

    def questions(self, examples: Sequence[Example]) -> list[Question | str]:
        """Each example made ready to be asked about or, in words, why it cannot be."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes without the GIL
            return list(pool.map(self._question, examples))

    def _question(self, example: Example) -> Question | str:
        try:
            photo = decode_photo(example.source, "the picture before")
            decode_photo(example.target, "the picture after")
            ids = self._tokenizer.encode_prompt(example.instruction)
        except ValueError as error:
            return str(error).split(";")[0]
        return Question(ids, clip_pixels(photo, self._image_size, CLIP_MEAN, CLIP_STD), example.instruction.strip())

    def __call__(self, questions: Sequence[Question]) -> list[Written]:
        """Expressive instructions of up to `batch_size` questions of one width. Rows do not see one another."""
        with jax.set_mesh(self._mesh):
            texts = self._answers(questions)
            told = [text for text in texts if text]
            short = iter(self._summaries(told) if self._t5 and told else told)
        # A summary of nothing leaves what was to be summarized.
        return [
            Written(next(short) or text, False) if text else Written(question.fallback, True)
            for question, text in zip(questions, texts, strict=True)
        ]

    def _answers(self, questions: Sequence[Question]) -> list[str]:
        tokenizer = self._tokenizer
        ids, mask = pad_batch([q.ids for q in questions], [questions[0].width], pad_id=tokenizer.pad_id)
        tokens, lengths = answer(
            self._model, self._mllm, *self._placed(ids, mask, np.stack([q.pixels for q in questions])),
            max_new_tokens=self.max_new_tokens, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id,
        )  # fmt: skip
        return [tokenizer.decode_answer(row) for row in _cut(tokens, lengths, len(questions))]

    def _summaries(self, texts: Sequence[str]) -> list[str]:
        model, tokenizer, told = self._t5
        rows = [tokenizer.encode(told.prefix + SUMMARY.format(text=text)) for text in texts]
        ids, mask = pad_batch(rows, [bucket(max(map(len, rows)))], pad_id=0)
        best = summary(
            model, self._t5_params, *self._placed(ids, mask),
            length_penalty=told.length_penalty, early_stopping=told.early_stopping,
        )  # fmt: skip
        return [tokenizer.decode(row) for row in _cut(best.tokens, best.length, len(texts))]

    def _placed(self, *arrays: np.ndarray) -> list[Array]:
        """On the mesh, the last row repeated until there are as many as every batch has."""
        padded = [np.concatenate([x, np.repeat(x[-1:], self._rows - len(x), axis=0)]) for x in arrays]
        return jax.device_put(padded, batch_sharding(self._mesh))


def _cut(tokens: Int[Array, "b new"], lengths: Int[Array, " b"], count: int) -> list[np.ndarray]:
    tokens, lengths = jax.device_get((tokens, lengths))
    return [tokens[i, : lengths[i]] for i in range(count)]


def bucket(length: int) -> int:
    """The length that a text of so many tokens is padded to."""
    return _up(length, BUCKET)


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
