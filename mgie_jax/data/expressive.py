"""Expressive instructions: what is seen, then what changes, in two sentences.

The second sentence holds a term that no other kind of edit uses, so `named_edit` can tell which edit a
written text is about. The sentences share no run of three words with any instruction, because decoding
forbids a token 3-gram of the prompt to recur in the answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from mgie_jax.data.photo_stats import PhotoStats

_OPENINGS = ("The scene looks {words}.", "Right now everything appears {words}.")

# Kind -> (its own term, as a regular expression; the sentences).
_GLOBAL = {
    "brighter": (r"brighter", (
        "Everything becomes much brighter, with light filling every part and shadows opening up.",
        "Every tone turns clearly brighter, as if strong lamps had been switched on.",
    )),
    "darker": (r"darker", (
        "Everything becomes much darker, with shadows deepening and highlights sinking into gloom.",
        "Every tone turns clearly darker, as if most lamps had been switched off.",
    )),
    "contrast_up": (r"bolder", (
        "Contrast grows far bolder, so blacks get deep while whites shine hard.",
        "Tones spread apart for bolder contrast, with deep blacks against brilliant whites.",
    )),
    "contrast_down": (r"gentler", (
        "Contrast grows far gentler, so all tones gather around an even middle gray.",
        "Tones move together for gentler contrast, without real blacks or real whites.",
    )),
    "saturate": (r"vibrancy", (
        "Color vibrancy rises strongly, and each hue glows rich, intense and pure.",
        "Every hue gains heavy vibrancy, looking far richer than reality.",
    )),
    "mute": (r"subdued", (
        "Hues become quiet and subdued, keeping only a hint of their former strength.",
        "Color drops to a subdued level, close to gray but not entirely.",
    )),
    "black_and_white": (r"grayscale", (
        "All hues vanish, leaving a pure grayscale rendition with identical light and shade.",
        "Only grayscale tones remain, from deep black through silver toward clean white.",
    )),
    "sepia": (r"sepia", (
        "Hues give way to brown sepia tones over all lights and shadows.",
        "One brownish sepia color replaces every hue, keeping light and shade intact.",
    )),
    "warmer": (r"warmer", (
        "Light shifts warmer, with amber tones rising and blues fading out.",
        "Colors lean warmer throughout, as though lit by candles and late sun.",
    )),
    "cooler": (r"cooler", (
        "Light shifts cooler, with icy tones rising and oranges fading out.",
        "Colors lean cooler throughout, as though lit by snow and winter shade.",
    )),
    "red_tint": (r"veil of red|red veil", (
        "A strong veil of red spreads evenly across all objects and background.",
        "One even red veil covers all, pulling whites toward crimson.",
    )),
    "green_tint": (r"veil of green|green veil", (
        "A strong veil of green spreads evenly across all objects and background.",
        "One even green veil covers all, pulling whites toward emerald.",
    )),
    "blue_tint": (r"veil of blue|blue veil", (
        "A strong veil of blue spreads evenly across all objects and background.",
        "One even blue veil covers all, pulling whites toward azure.",
    )),
    "purple_tint": (r"veil of purple|purple veil", (
        "A strong veil of purple spreads evenly across all objects and background.",
        "One even purple veil covers all, pulling whites toward lavender.",
    )),
    "blur": (r"blurred", (
        "Shapes melt into a blurred haze of color where fine detail is lost.",
        "Outlines dissolve, leaving soft blurred shapes without any readable detail.",
    )),
    "sharpen": (r"crisply", (
        "Fine texture stands out crisply, with hard clean lines around all shapes.",
        "Each outline is crisply drawn, and small texture gains strong bite.",
    )),
    "invert": (r"reversed", (
        "All values are reversed, so white becomes black and hues show their complements.",
        "Light and shade get reversed like film, with each hue replaced by its complement.",
    )),
    "vignette": (r"vignette", (
        "A heavy vignette darkens its borders, leaving light only around its center.",
        "Toward its corners a round vignette closes in, while its center stays clear.",
    )),
    "night": (r"moonlit", (
        "Daylight gives way to moonlit darkness, dim and bluish from side to side.",
        "Day turns into moonlit midnight, with deep blue shadows and faint color.",
    )),
    "old_photo": (r"antique", (
        "Everything resembles an antique print, yellowed and pale with shaded borders.",
        "Time turns this into some antique print, brown, weak and dark at its rim.",
    )),
    "fog": (r"whitish", (
        "Dense whitish fog hangs over all things, thickest near its upper side.",
        "Objects sink behind whitish mist, losing color and depth with distance.",
    )),
    "posterize": (r"posterized", (
        "Smooth shading breaks into posterized areas of just eight colors, all bold.",
        "Gradients disappear in favor of hard posterized patches of plain color.",
    )),
    "solarize": (r"solarized", (
        "Light tones fold back to dark, creating some strange solarized mixture of values.",
        "Bright zones flip over while dark zones stay, giving an eerie solarized result.",
    )),
    "sunset": (r"golden", (
        "Low golden rays pour from above, soaking all things with orange evening warmth.",
        "Evening arrives with golden orange rays, strongest near its upper side.",
    )),
    "cinematic": (r"teal", (
        "Shadows move toward teal while highlights turn orange, much like feature films.",
        "Film grading arrives, pairing teal shadows against glowing orange highlights.",
    )),
    "faded": (r"milky", (
        "Blacks rise into milky gray and colors pale, like film left under sunlight.",
        "Pale milky tones take over, without deep blacks or clear whites.",
    )),
    "pixelate": (r"square blocks", (
        "Details collapse into large square blocks, each holding one average color.",
        "Coarse square blocks replace all detail, arranged on a regular grid.",
    )),
    "sketch": (r"pencil strokes", (
        "Thin gray pencil strokes trace all outlines on empty white paper.",
        "Only pencil strokes along edges survive, set on clean white paper.",
    )),
}  # fmt: skip

# Kind -> (its own term, what is seen -> the sentence); the first of the photo's words listed here decides.
_REPAIRS = {
    "fix_exposure": (r"exposure", {
        "dark": "Its exposure is lifted strongly until middle tones sit at a natural level.",
        "dim": "Its exposure is lifted slightly until middle tones sit at a natural level.",
        "balanced": "Its exposure stays nearly unchanged because middle tones already sit well.",
        "bright": "Its exposure is pulled down until middle tones sit at a natural level.",
    }),
    "fix_white_balance": (r"white balance", {
        "warm": "Its white balance moves toward blue, canceling that orange cast.",
        "cool": "Its white balance moves toward orange, canceling that blue cast.",
        "greenish": "Its white balance moves toward magenta, canceling that green cast.",
        "pinkish": "Its white balance moves toward green, canceling that magenta cast.",
        "neutral": "Its white balance stays nearly unchanged because grays already look clean.",
    }),
    "make_pop": (r"lively", {
        "flat": "Tones spread far apart and hues intensify for lively, energetic impact.",
        "dull": "Hues intensify strongly and tones spread apart for lively, energetic impact.",
        "": "Both tones and hues gain strength for lively, energetic impact.",
    }),
    "look_professional": (r"polished", {
        "dark": "A polished result follows, with open shadows, neutral color and clean tonal depth.",
        "dim": "A polished result follows, with open shadows, neutral color and clean tonal depth.",
        "bright": "A polished result follows, with calmed highlights, neutral color and clean tonal depth.",
        "balanced": "A polished result follows, with neutral color and clean tonal depth throughout.",
    }),
    "fix_lighting": (r"illumination", {
        "dark": "Illumination is raised and stretched, from clear blacks up to clean whites.",
        "dim": "Illumination is raised and stretched, from clear blacks up to clean whites.",
        "bright": "Illumination is lowered and stretched, from clear blacks up to clean whites.",
        "balanced": "Illumination is stretched over its full range, from clear blacks up to clean whites.",
    }),
}  # fmt: skip

_LOCAL = {
    "add": (r"newly placed", (
        "One {o} gets newly placed {p}, standing in front of all else.",
        "A newly placed {o} stands {p}, while all else stays as before.",
    )),
    "remove": (r"vanishes", (
        "That {o} {p} vanishes, and just its background remains visible there.",
        "Background fills this spot {p} as that {o} vanishes without any trace.",
    )),
    "recolor": (r"repainted", (
        "That {o} {p} is repainted {c}, while all else stays as before.",
        "Only that {o} {p} gets repainted with {c}, keeping its light and shade.",
    )),
    "replace": (r"swapped", (
        "That {o} {p} gets swapped, and one {r} of similar size stands there.",
        "One {r} stands {p}, swapped with that {o} seen before.",
    )),
}  # fmt: skip

SENTENCES = {**_GLOBAL, **_REPAIRS, **_LOCAL}
_TERMS = {kind: re.compile(rf"\b(?:{entry[0]})\b") for kind, entry in SENTENCES.items()}


def describe(stats: PhotoStats, rng: np.random.Generator) -> str:
    """The first sentence: what is seen."""
    *first, last = stats.words
    words = f"{', '.join(first)} and {last}" if first else last
    return _OPENINGS[int(rng.integers(len(_OPENINGS)))].format(words=words)


def expressive(kind: str, stats: PhotoStats, rng: np.random.Generator, slots: Mapping[str, str] | None = None) -> str:
    """The expressive instruction for an edit of a photo: two sentences, 14 to 28 words.

    Args:
      kind: a key of `SENTENCES`.
      stats: measured on the source photo.
      rng: chooses between wordings.
      slots: what fills `{o}` (object), `{r}` (replacement), `{c}` (color) and `{p}` (place) of a local edit.
    """
    sentences = SENTENCES[kind][1]
    if isinstance(sentences, dict):
        seen = (*stats.words, stats.cast, "")
        sentence = sentences[next(word for word in seen if word in sentences)]
    else:
        sentence = sentences[int(rng.integers(len(sentences)))]
    return f"{describe(stats, rng)} {sentence.format(**(slots or {}))}"


def named_edit(text: str) -> str | None:
    """The one kind of edit whose own term occurs in a text; None where none does, or several do."""
    found = [kind for kind, term in _TERMS.items() if term.search(text.lower())]
    return found[0] if len(found) == 1 else None
