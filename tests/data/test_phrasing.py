"""Instructions and expressive texts: many, disjoint where they must be, and told apart."""

import functools
import itertools
import re

import numpy as np
import pytest

from mgie_jax.data.cores import CORES
from mgie_jax.data.cutouts import COLORS, PLACES
from mgie_jax.data.expressive import _OPENINGS, SENTENCES, expressive, named_edit
from mgie_jax.data.generate import KINDS, LOCAL_KINDS
from mgie_jax.data.photo_stats import PhotoStats
from mgie_jax.data.phrasing import (
    LEXICAL_CORES,
    NOUNS,
    REMARK_WRAPPERS,
    STYLES,
    WRAPPERS,
    all_instructions,
    article,
    instruction,
    surface,
)
from mgie_jax.text.prompt import PromptConfig

PLAIN_SLOTS = {"o": "frog", "a": "a frog", "r": "owl", "b": "an owl", "c": "blue"}
SLOTS = {**PLAIN_SLOTS, "p": "on the left"}
STOP_WORDS = set("a an the of to it and in on with by that this into up have make is for be i one".split())


def words(text):
    return re.findall(r"[a-z0-9&']+", text.lower())


def trigrams(text):
    found = words(text)
    return set(zip(found, found[1:], found[2:], strict=False))


@pytest.fixture(scope="module")
def instructions():
    """(kind, split) -> every surface string."""
    return {(kind, split): set(all_instructions(kind, split, SLOTS)) for kind in CORES for split in WRAPPERS}


def every_stats():
    """A photo for each combination of what can be seen."""
    casts = ((0.5, 0.5, 0.5), (0.6, 0.5, 0.45), (0.45, 0.5, 0.6), (0.4, 0.5, 0.4), (0.5, 0.4, 0.5))
    for combination in itertools.product((0.1, 0.3, 0.5, 0.7), (0.1, 0.2, 0.3), (0.05, 0.2, 0.4), casts):
        yield PhotoStats(*combination)


@functools.cache
def every_expressive(kind):
    """A kind's texts: every sentence behind every description, and beside every place and color."""
    slots = [{**PLAIN_SLOTS, "p": place[1], "c": color} for place in PLACES.values() for color in COLORS]
    settings = [(stats, slots[0]) for stats in every_stats()]
    if kind in LOCAL_KINDS:
        settings += [(PhotoStats(0.1, 0.1, 0.05, (0.1, 0.1, 0.1)), other) for other in slots]
    return {expressive(kind, stats, np.random.default_rng(seed), s) for stats, s in settings for seed in range(6)}


def test_every_kind_has_words():
    assert set(CORES) == set(SENTENCES) == set(KINDS)


def test_phrasings_are_many():
    assert len(WRAPPERS["train"]) >= 20 and len(WRAPPERS["heldout"]) >= 5
    assert len(REMARK_WRAPPERS["heldout"]) >= 5
    for kind, cores in CORES.items():
        assert len(set(cores["train"])) >= 14, kind
        assert len(set(cores["heldout"])) >= 4, kind


def test_splits_share_no_surface_string(instructions):
    for kind in CORES:
        assert not instructions[kind, "train"] & instructions[kind, "heldout"], kind
    everything = {split: set.union(*(instructions[k, split] for k in CORES)) for split in WRAPPERS}
    assert not everything["train"] & everything["heldout"]


def test_splits_share_no_core_nor_wrapper():
    for wrappers in (WRAPPERS, REMARK_WRAPPERS):
        assert not set(wrappers["train"]) & set(wrappers["heldout"])
    for kind, cores in CORES.items():
        assert not {c.lstrip("~") for c in cores["train"]} & {c.lstrip("~") for c in cores["heldout"]}, kind


def test_heldout_cores_share_a_stem_with_training():
    for kind, cores in CORES.items():
        known = {word[:4] for core in cores["train"] for word in words(core)} - STOP_WORDS
        for core in cores["heldout"]:
            assert known & {word[:4] for word in words(core) if word not in STOP_WORDS}, (kind, core)


def test_no_instruction_means_two_kinds(instructions):
    for split in WRAPPERS:
        seen = {}
        for kind in CORES:
            for text in instructions[kind, split]:
                assert seen.setdefault(text, kind) == kind, (text, kind, seen[text])


def test_random_heldout_instructions_are_among_all(instructions):
    rng = np.random.default_rng(0)
    for kind in CORES:
        for _ in range(20):
            assert instruction(kind, "heldout", rng, SLOTS) in instructions[kind, "heldout"]


def test_lexical_cores_are_new_and_mean_one_kind():
    """None is held out, none is shared by two kinds: the lexicon adds words, not answers."""
    heldout = {core.lstrip("~") for cores in CORES.values() for core in cores["heldout"]}
    seen = {}
    for kind, cores in LEXICAL_CORES.items():
        assert len(cores) >= 50, kind
        for core in cores:
            assert core.lstrip("~") not in heldout
            assert seen.setdefault(core.lstrip("~"), kind) == kind


def test_training_instructions_never_hold_a_heldout_one(instructions):
    """Fillers around a training phrase spell no held-out instruction."""
    rng = np.random.default_rng(0)
    heldout = set.union(*(instructions[kind, "heldout"] for kind in CORES))
    texts = {instruction(kind, "train", rng, SLOTS) for kind in CORES for _ in range(300)}
    assert len(texts) > 300 * len(CORES) // 2
    assert not texts & heldout


def test_styles():
    make = lambda style: surface("make {n} brighter", "could you please {}?", "it", style, {})  # noqa: E731
    assert make("plain") == "could you please make it brighter?"
    assert make("sentence") == "Could you please make it brighter?"
    assert make("lazy") == "could you please make it brighter"
    assert make("typo") != make("lazy") and len(make("typo").split()) == 6
    assert len({make(style) for style in STYLES}) == 4


def test_article():
    assert [article(noun) for noun in ("owl", "frog")] == ["an owl", "a frog"]


@pytest.mark.parametrize("kind", KINDS)
def test_expressive_texts_name_their_edit(kind):
    for text in every_expressive(kind):
        assert named_edit(text) == kind, text


@pytest.mark.parametrize("kind", KINDS)
def test_expressive_texts_keep_their_form(kind):
    for text in every_expressive(kind):
        assert 14 <= len(words(text)) <= 28, (len(words(text)), text)
        assert text.endswith(".") and text.count(".") == 2 and "{" not in text, text
        assert "alternative" not in text.lower() and "[IMG" not in text and "\n" not in text
        assert len(trigrams(text)) == len(words(text)) - 2, f"a repeated trigram in: {text}"


def test_no_trigram_in_both_prompt_and_answer():
    """Word trigrams, whatever fills the slots; nouns and wrappers included."""
    prompt = PromptConfig()
    asked = {trigram: "the prompt" for text in (prompt.system, prompt.question) for trigram in trigrams(text)}
    for said, _, _, _ in PLACES.values():
        for color in COLORS:
            for kind in CORES:
                local = kind in LOCAL_KINDS
                if not local and (said, color) != ("on the left", "red"):
                    continue
                slots = {**PLAIN_SLOTS, "p": said, "c": color}
                for split, cores in CORES[kind].items():
                    for core in cores:
                        wrappers = (REMARK_WRAPPERS if core.startswith("~") else WRAPPERS)[split]
                        for wrapper, noun in itertools.product(wrappers, NOUNS if "{n}" in core else NOUNS[:1]):
                            text = surface(core, wrapper, noun, "plain", slots)
                            asked.update(dict.fromkeys(trigrams(text), text))
    for cores in LEXICAL_CORES.values():
        for core, noun in itertools.product(cores, NOUNS):
            text = surface(core, "{}", noun, "plain", {})
            asked.update(dict.fromkeys(trigrams(text), text))
    for kind in KINDS:
        for text in every_expressive(kind):
            shared = trigrams(text) & asked.keys()
            assert not shared, (text, [(t, asked[t]) for t in shared])


def test_named_edit_of_other_texts():
    assert named_edit("") is None
    assert named_edit("A dog on a lawn.") is None
    assert named_edit("It becomes brighter and darker.") is None
    assert named_edit("IT BECOMES BRIGHTER.") == "brighter"
    assert len(_OPENINGS) == 2
