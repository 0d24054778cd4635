"""Instructions in many people's words: core phrases, wrapped, about a noun, written carefully or not.

A surface string is `style(wrapper(core(noun)))`. The held-out split uses cores and wrappers that training
never uses, so every held-out instruction is new in both.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from mgie_jax.data.cores import CORES
from mgie_jax.data.lexicon import FILLER, LEXICON, lexicon_cores

NOUNS = (
    "it", "this", "the photo", "this photo", "the picture", "this picture", "the image", "this image",
    "this shot", "my photo", "this pic",
)  # fmt: skip

# "{}" is an imperative.
WRAPPERS = {
    "train": (
        "{}", "{}.", "please {}", "{} please", "{} pls", "plz {}", "can you {}?", "can you please {}?",
        "could you {}?", "could you please {}?", "i want you to {}", "i'd like you to {}",
        "i need you to {}", "would you {}?", "let's {}", "just {}", "hey, {}", "ok now {}", "try to {}",
        "go ahead and {}", "{}, thanks", "{} for me", "{} as a favor", "help me {}", "now {}", "kindly {}",
        "the plan is to {}", "i want to {}",
    ),
    "heldout": (
        "i was hoping you could {}", "do me a favor and {}", "{} if you can", "{} thank you so much",
        "is it possible to {}?", "my client asked me to {}", "what if we {}?", "your task: {}",
    ),
}  # fmt: skip

# "{}" is a fragment or a remark, marked "~" in the table of cores.
REMARK_WRAPPERS = {
    "train": (
        "{}",
        "{}.",
        "{} please",
        "{} pls",
        "{}, thanks",
        "hmm, {}",
        "hey, {}",
        "ok, {}",
        "well, {}",
        "now: {}",
    ),
    "heldout": ("to be honest, {}", "{}, if you ask me", "umm {}", "quick one: {}", "{}, thank you so much"),
}


def _lexical() -> dict[str, tuple[str, ...]]:
    """Kind -> the cores made by the lexicon, less those held out, hand-written, or fit for two kinds."""
    made = {kind: dict.fromkeys(core.lstrip("~") for core in lexicon_cores(kind)) for kind in LEXICON}
    taken = {core.lstrip("~") for splits in CORES.values() for cores in splits.values() for core in cores}
    times = Counter(core for cores in made.values() for core in cores)
    return {
        kind: tuple(
            core for core in dict.fromkeys(lexicon_cores(kind))
            if times[core.lstrip("~")] == 1 and core.lstrip("~") not in taken
        )
        for kind in LEXICON
    }  # fmt: skip


LEXICAL_CORES = _lexical()
LEXICAL_SHARE = 0.6  # of training instructions, where the kind has a lexicon
FILLER_ODDS = 0.35  # of words strewn before, and as often after, a training instruction

STYLES = ("plain", "sentence", "lazy", "typo")
_STYLE_ODDS = (0.4, 0.2, 0.25, 0.15)


def instruction(kind: str, split: str, rng: np.random.Generator, slots: Mapping[str, str] | None = None) -> str:
    """A random instruction for a kind of edit.

    Args:
      kind: a key of `CORES`.
      split: "train" or "heldout".
      rng: decides everything.
      slots: what fills the slots of a local edit's cores, see `cores`.
    """
    cores = CORES[kind][split]
    if split == "train" and kind in LEXICAL_CORES and rng.random() < LEXICAL_SHARE:
        cores = LEXICAL_CORES[kind]
    core = _pick(cores, rng)
    wrapper = _pick((REMARK_WRAPPERS if core.startswith("~") else WRAPPERS)[split], rng)
    noun = _pick(NOUNS, rng)
    style = STYLES[int(rng.choice(len(STYLES), p=_STYLE_ODDS))]
    text = surface(core, wrapper, noun, style, slots or {})
    if split == "train":
        before, after = (" ".join(_fillers(rng)) for _ in range(2))
        text = f"{before} {text} {after}".strip()
    return text


def _fillers(rng: np.random.Generator) -> list[str]:
    """Up to three words without meaning, or more often none."""
    return [_pick(FILLER, rng) for _ in range(int(rng.integers(1, 4)))] if rng.random() < FILLER_ODDS else []


def surface(core: str, wrapper: str, noun: str, style: str, slots: Mapping[str, str]) -> str:
    """The one string these choices spell."""
    text = wrapper.format(core.lstrip("~").format(n=noun, **slots))
    if style == "sentence":
        text = text[0].upper() + text[1:]
        return text if text[-1] in ".?" else text + "."
    if style == "plain":
        return text
    text = re.sub(r"[^\w\s&]", "", text)
    return _mistype(text) if style == "typo" else text


def all_instructions(kind: str, split: str, slots: Mapping[str, str] | None = None) -> Iterator[str]:
    """Every string that hand-written cores give, with repeats; training has the lexicon's cores and fillers besides."""
    for core in CORES[kind][split]:
        wrappers = (REMARK_WRAPPERS if core.startswith("~") else WRAPPERS)[split]
        for noun in NOUNS if "{n}" in core else NOUNS[:1]:
            for wrapper in wrappers:
                for style in STYLES:
                    yield surface(core, wrapper, noun, style, slots or {})


def article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _mistype(text: str) -> str:
    """The longest word loses a letter or has two exchanged.

    Its spelling decides which, so that a string has one misspelling and all instructions can be enumerated.
    """
    words = text.split()
    at = max(range(len(words)), key=lambda i: len(words[i]))
    word = words[at]
    if len(word) < 5:
        return text
    digest = hashlib.sha256(word.encode()).digest()
    cut = 1 + digest[0] % (len(word) - 2)  # the first and last letters are seldom mistyped
    swapped = word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :]
    words[at] = word[:cut] + word[cut + 1 :] if digest[1] % 2 or swapped == word else swapped
    return " ".join(words)


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
