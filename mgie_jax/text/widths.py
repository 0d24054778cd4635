"""To how many tokens texts are padded: one width for what people write, and one for whatever is longer.

Each width is a program to compile. The usual one has room for the prompt's own words, the photo's patches and a
generous instruction, so that whatever people write runs one program; padding changes nothing of what comes out.
"""

import math

from mgie_jax.text.prompt import PromptConfig, PromptTokenizer, build_prompt

ROOM = 64  # tokens of an instruction: about 45 words
# Fine enough to pad little, coarse enough to hit what hardware likes: the published model's width is 384, which is also
# a multiple of a TPU's 128 lanes. They would matter little: tokens lie along them in attention's logits alone.
MULTIPLE = 64
CHARACTERS = 4  # of English in a token, about


def widths(own: int, room: int, longest: int) -> tuple[int, ...]:
    """Widths that texts are padded to, ascending.

    Args:
      own: tokens that every such text has, whatever is asked: the prompt's words and the photo's patches.
      room: tokens of what people write.
      longest: tokens that a text may have.
    """
    usual = math.ceil((own + room) / MULTIPLE) * MULTIPLE
    return (usual, longest) if usual < longest else (longest,)


def prompt_widths(tokenizer: PromptTokenizer) -> tuple[int, ...]:
    """Of prompts, measured with the model's own tokenizer."""
    own = len(tokenizer.encode_prompt("a")) - 1
    return widths(own, ROOM, tokenizer.config.model_max_length)


def example_widths(tokenizer: PromptTokenizer, answer: int) -> tuple[int, ...]:
    """Of prompts with their answers, with room for an instruction and for an answer of `answer` tokens."""
    own = len(tokenizer.encode_example("a", "a")[0]) - 2
    return widths(own, ROOM + answer, tokenizer.config.model_max_length)


def planned_width(config: PromptConfig, num_patches: int) -> int:
    """About the usual one of `prompt_widths`, where there is no tokenizer: its words are counted by their letters."""
    words = build_prompt("", 0, config)
    return widths(num_patches + math.ceil(len(words) / CHARACTERS), ROOM, config.model_max_length)[0]
