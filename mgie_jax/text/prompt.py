"""The conversation: instruction -> token ids, token ids -> the sentence shown to people.

The text is Vicuna v1.1's conversation as released with MGIE (section "prompt" of the README of the
reference implementation, LLaVA's `preprocess_v1`). Ids are put together from pieces, never by running the
whole text through the tokenizer: what a person types can then neither add nor remove a special token, and
tokenizers that differ in how they treat the spaces around special tokens all give the same sequence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import SupportsInt

import numpy as np
from jaxtyping import Bool, Int

IM_PATCH, IM_START, IM_END = "<im_patch>", "<im_start>", "<im_end>"
IMG_TOKENS = tuple(f"[IMG{i}]" for i in range(8))
IGNORE = -100  # label of a position that the loss skips
ROLE = "ASSISTANT:"


class PromptError(ValueError):
    """What a person asks, or an example of it, cannot be put in a prompt: it is empty or too long."""


@dataclass(frozen=True)
class PromptConfig:
    """The words around the instruction; the defaults are the released model's.

    Attributes:
      system: text before the question; "" for none.
      question: what is asked; `{instruction}` stands for the person's words.
      model_max_length: longest sequence, in tokens, image patches included.
    """

    system: str = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions."
    )
    question: str = "what will this image be like if '{instruction}'"
    model_max_length: int = 512

    def __post_init__(self):
        if "{instruction}" not in self.question:
            raise ValueError(f"question must contain '{{instruction}}', got {self.question!r}")


def neutralise(text: str, special: Sequence[str]) -> str:
    """`text` in which no string of `special` occurs: a space parts the first character from the rest.

    A person may type "<im_patch>" or "</s>"; it has to stay words. Control characters, which no tokenizer
    vocabulary was trained on, become spaces; the ends are stripped.
    """
    text = re.sub(r"[\x00-\x1f\x7f]", " ", text).strip()
    # The longest first, so that a token which contains another is not left whole.
    for token in sorted(special, key=len, reverse=True):
        if len(token) > 1:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _head(instruction: str, config: PromptConfig) -> str:
    question = config.question.replace("{instruction}", instruction)
    return f"{config.system} USER: {question}\n".lstrip()


def build_prompt(instruction: str, num_patches: int, config: PromptConfig = PromptConfig()) -> str:
    """The prompt as text, for people and logs; `PromptTokenizer.encode_prompt` gives its ids."""
    instruction = neutralise(instruction, (IM_PATCH, IM_START, IM_END, *IMG_TOKENS, "<s>", "</s>", "<unk>"))
    return f"{_head(instruction, config)}{IM_START}{IM_PATCH * num_patches}{IM_END} {ROLE}"


def clean_expressive(text: str) -> str:
    """The part of the model's text that is shown to people.

    Cut after "ASSISTANT:", before "</s>", before the word "alternative" (any case), before "[IMG0]"; the
    first two sentences; a full stop at the end. Source: `remove_alter` of the released notebooks, save that
    a blank follows the first full stop, that a full stop within a number ("0.5") ends no sentence, and that
    nothing gives "" where the original raises.
    """
    _, found, after = text.partition(ROLE)
    text = after if found else text
    text = text.split("</s>")[0]
    text = re.split("alternative", text, maxsplit=1, flags=re.IGNORECASE)[0]
    text = text.split("[IMG0]")[0]
    sentences = [s.strip() for s in re.split(r"\.(?!\d)", text)[:2]]
    kept = ". ".join(s for s in sentences if s)
    return f"{kept}." if kept else ""


class PromptTokenizer:
    """A Hugging Face tokenizer together with the conversation's special tokens.

    Args:
      tokenizer: `transformers.PreTrainedTokenizerFast` (LLaMA's, or one of `train_tokenizer.train_bpe`)
        that holds `<im_patch>`, `<im_start>`, `<im_end>` and `[IMG0]`..`[IMG7]`.
      num_patches: image patches the vision tower yields, 256 for CLIP ViT-L/14 at 224 px.
      config: the words of the prompt.

    Raises:
      ValueError: the tokenizer lacks a special token, or `[IMG0]`..`[IMG7]` are not consecutive ids.
    """

    def __init__(self, tokenizer, num_patches: int, config: PromptConfig = PromptConfig()):
        self.tokenizer, self.num_patches, self.config = tokenizer, num_patches, config
        vocabulary = tokenizer.get_vocab()
        missing = [t for t in (IM_PATCH, IM_START, IM_END, *IMG_TOKENS) if t not in vocabulary]
        if missing or tokenizer.eos_token_id is None:
            missing += ["an end-of-sequence token"] if tokenizer.eos_token_id is None else []
            raise ValueError(f"the tokenizer lacks {', '.join(missing)}; add them (tokenizer.add_tokens)")
        self.im_patch_id, self.im_start_id, self.im_end_id = (vocabulary[t] for t in (IM_PATCH, IM_START, IM_END))
        self.img_ids = tuple(vocabulary[t] for t in IMG_TOKENS)
        if self.img_ids != tuple(range(self.img_ids[0], self.img_ids[0] + 8)):
            raise ValueError(f"[IMG0]..[IMG7] must be eight consecutive ids, found {self.img_ids}")
        self.bos_id, self.eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.unk_token_id
        self.pad_id = self.eos_id if pad_id is None else pad_id
        self._special = tuple({t.content for t in tokenizer.added_tokens_decoder.values()})
        # LLaMA's tokenizers put a blank before any text themselves, byte-level ones do not.
        first = tokenizer.convert_ids_to_tokens(self._encode("a"))[0]
        self._role = ROLE if first.startswith("\u2581") else f" {ROLE}"

    @property
    def vocab_size(self) -> int:
        """Rows that the embedding needs."""
        return len(self.tokenizer)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def _checked(self, ids: list[int], what: str) -> list[int]:
        limit = self.config.model_max_length
        if len(ids) > limit:
            raise PromptError(
                f"{what} is {len(ids)} tokens long with the prompt around it, the limit is {limit}: "
                f"shorten it by about {len(ids) - limit} tokens"
            )
        return ids

    def _image_ids(self, instruction: str) -> list[int]:
        """Ids up to and including `<im_end>`."""
        instruction = neutralise(instruction, self._special)
        if not instruction:
            raise PromptError("the instruction is empty")
        bos = [] if self.bos_id is None else [self.bos_id]
        patches = [self.im_patch_id] * self.num_patches
        return bos + self._encode(_head(instruction, self.config)) + [self.im_start_id, *patches, self.im_end_id]

    def encode_prompt(self, instruction: str) -> list[int]:
        """Ids of the prompt, ready for generation: they end with "ASSISTANT:".

        Raises:
          PromptError: the instruction is empty, or the prompt is longer than `model_max_length`.
        """
        return self._checked(self._image_ids(instruction) + self._encode(self._role), "the instruction")

    def encode_example(self, instruction: str, expressive: str) -> tuple[list[int], list[int]]:
        """Ids of prompt and answer, and their labels, of one length.

        The answer is the expressive instruction, `[IMG0]`..`[IMG7]` next to one another, `</s>`. Labels
        are the ids themselves over the answer and -100 before it (LLaVA's `preprocess_v1`): `labels[i]` is
        the token at position i, so the loss compares `logits[i - 1]` with it.

        Raises:
          PromptError: instruction or expressive text is empty, or the whole is longer than `model_max_length`.
          ValueError: the labels cannot begin where the answer does, for the tokenizer merges the two. (The released
            code prints a warning and trains on without the example's labels.)
        """
        expressive = neutralise(expressive, self._special)
        if not expressive:
            raise PromptError("the expressive instruction is empty")
        prompt = self._image_ids(instruction)
        role, answer = self._encode(self._role), self._encode(f"{self._role} {expressive}")
        if answer[: len(role)] != role:
            raise ValueError(f"the tokenizer merges {ROLE!r} with the text after it: {expressive[:40]!r}")
        ids = self._checked([*prompt, *answer, *self.img_ids, self.eos_id], "the expressive instruction")
        start = len(prompt) + len(role)
        return ids, [IGNORE] * start + ids[start:]

    def decode_answer(self, ids: Iterable[SupportsInt]) -> str:
        """The expressive instruction, cleaned, of generated ids (those after the prompt)."""
        stops = {self.eos_id, self.img_ids[0]}
        answer = []
        for token in ids:
            if int(token) in stops:
                break
            answer.append(int(token))
        return clean_expressive(self.tokenizer.decode(answer, skip_special_tokens=True))


def pad_batch(
    rows: Sequence[Sequence[int]], buckets: Sequence[int], *, pad_id: int, side: str = "right"
) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
    """Rows padded to the smallest of `buckets` that holds them all, and the mask of real positions.

    Few lengths mean few compilations. Labels are padded by the same function with `pad_id=IGNORE`.

    Raises:
      ValueError: a row is longer than the largest bucket, or `side` is neither "left" nor "right".
    """
    if side not in ("left", "right"):
        raise ValueError(f'side must be "left" or "right", got {side!r}')
    longest = max(len(row) for row in rows)
    length = min((bucket for bucket in buckets if bucket >= longest), default=None)
    if length is None:
        raise ValueError(f"a row of {longest} tokens does not fit the largest bucket, {max(buckets)}")
    ids = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[i, where], mask[i, where] = row, True
    return ids, mask
