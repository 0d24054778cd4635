"""Edits do what their names say, exactly and visibly."""

import numpy as np
import pytest

from mgie_jax.data.ops import GLOBAL_OPS, gaussian_blur, luminance
from mgie_jax.data.photo_stats import PhotoStats, measure
from mgie_jax.data.repairs import REPAIRS, TARGET_LUMINANCE, degrade

SUBTLE = {"sharpen", "mute", "vignette", "blur", "black_and_white", "pixelate", "contrast_up"}


def scene(size=64, seed=0):
    """Something like a landscape: a bright sky, dark textured ground, a colored thing."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    sky = np.stack([0.5 + 0.2 * y, 0.65 + 0.1 * y, 0.9 - 0.1 * y], -1)
    ground = np.stack([0.35 + 0.1 * x, 0.4 + 0 * x, 0.2 + 0 * x], -1) + rng.normal(0, 0.06, (size, size, 1))
    image = np.where((y < 0.55 + 0.05 * np.sin(6 * x))[..., None], sky, ground)
    thing = (x - 0.4) ** 2 + (y - 0.6) ** 2 < 0.03
    image[thing] = (0.8, 0.2, 0.25)
    return np.clip(image, 0, 1).astype(np.float32)


@pytest.mark.parametrize("name", [*GLOBAL_OPS, *REPAIRS])
def test_pure_in_range_and_repeatable(name):
    op = {**GLOBAL_OPS, **REPAIRS}[name]
    for image in (
        scene(),
        scene(48)[:, :40],
        np.zeros((16, 16, 3), np.float32),
        np.ones((16, 16, 3), np.float32),
    ):
        before = image.copy()
        edited = op(image)
        assert edited.shape == image.shape and edited.dtype == np.float32
        assert edited.min() >= 0 and edited.max() <= 1
        assert np.array_equal(image, before), "the input was changed"
        assert np.array_equal(edited, op(image))


@pytest.mark.parametrize("name", GLOBAL_OPS)
def test_visible(name):
    change = np.abs(GLOBAL_OPS[name](scene()) - scene()).mean()
    assert change > (0.01 if name in SUBTLE else 0.08)


def test_kinds_are_many_and_differ():
    assert len(GLOBAL_OPS) >= 24
    results = [op(scene()) for op in GLOBAL_OPS.values()]
    for i, first in enumerate(results):
        for second in results[:i]:
            assert np.abs(first - second).mean() > 0.01


@pytest.mark.parametrize("name", ["blur", "sharpen", "vignette", "pixelate", "sketch", "fog", "sunset", "old_photo"])
def test_same_at_every_resolution(name):
    """Editing, then shrinking, is nearly shrinking, then editing."""
    large = scene(128)
    large = gaussian_blur(large, 1 / 50)  # without detail that only the larger size can hold
    halve = lambda image: image.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))  # noqa: E731
    op = GLOBAL_OPS[name]
    assert np.abs(halve(op(large)) - op(halve(large))).mean() < 0.02


def stats_after(name):
    return measure(GLOBAL_OPS[name](scene()))


def test_directions():
    before = measure(scene())
    red, green, blue = before.channels
    assert stats_after("brighter").luminance > before.luminance + 0.1
    assert stats_after("darker").luminance < before.luminance - 0.1
    assert stats_after("night").luminance < before.luminance - 0.2
    assert stats_after("contrast_up").contrast > 1.3 * before.contrast
    assert stats_after("contrast_down").contrast < 0.5 * before.contrast
    assert stats_after("saturate").saturation > 1.5 * before.saturation
    assert 0.1 < stats_after("mute").saturation / before.saturation < 0.5
    assert stats_after("black_and_white").saturation < 1e-6
    warm, cold = stats_after("warmer").channels, stats_after("cooler").channels
    assert warm[0] - warm[2] > red - blue + 0.1 and cold[0] - cold[2] < red - blue - 0.1
    for channel, name in enumerate(("red_tint", "green_tint", "blue_tint")):
        tinted = stats_after(name).channels
        assert tinted[channel] == max(tinted) and tinted[channel] > before.channels[channel]
    purple = stats_after("purple_tint").channels
    assert purple[1] == min(purple)


def test_detail():
    roughness = lambda image: np.abs(np.diff(luminance(image), axis=1)).mean()  # noqa: E731
    assert roughness(GLOBAL_OPS["blur"](scene())) < 0.7 * roughness(scene())
    assert roughness(GLOBAL_OPS["sharpen"](scene())) > 1.3 * roughness(scene())
    assert set(np.unique(GLOBAL_OPS["posterize"](scene()))) <= {0, 1}
    assert len(np.unique(GLOBAL_OPS["pixelate"](scene()).reshape(-1, 3), axis=0)) <= 256
    corner = GLOBAL_OPS["vignette"](scene())[0, 0] / scene()[0, 0]
    assert corner.max() < 0.2
    assert np.allclose(GLOBAL_OPS["invert"](GLOBAL_OPS["invert"](scene())), scene(), atol=1e-6)


def test_blur_keeps_a_plain_area():
    plain = np.full((20, 30, 3), 0.3, np.float32)
    assert np.allclose(gaussian_blur(plain, 0.1), plain, atol=1e-6)


def test_stats_in_words():
    assert PhotoStats(0.1, 0.1, 0.05, (0.1, 0.1, 0.1)).words == ("dark", "flat", "dull")
    assert PhotoStats(0.5, 0.2, 0.2, (0.5, 0.5, 0.5)).words == ("balanced",)
    assert PhotoStats(0.7, 0.3, 0.4, (0.8, 0.7, 0.6)).words == ("bright", "contrasty", "colorful", "warm")
    casts = {"cool": (0.4, 0.5, 0.6), "greenish": (0.4, 0.5, 0.4), "pinkish": (0.5, 0.4, 0.5)}
    for cast, channels in casts.items():
        assert PhotoStats(0.5, 0.2, 0.2, channels).cast == cast


def test_measure():
    stats = measure(np.full((8, 8, 3), 0.25, np.float32))
    assert stats.luminance == pytest.approx(0.25) and stats.contrast == pytest.approx(0, abs=1e-6)
    assert stats.saturation == 0 and stats.channels == pytest.approx((0.25,) * 3)


@pytest.mark.parametrize("gamma", [0.4, 2.5])
def test_exposure_is_brought_to_the_middle(gamma):
    for kind in ("fix_exposure", "fix_lighting"):
        assert abs(measure(REPAIRS[kind](scene() ** np.float32(gamma))).luminance - TARGET_LUMINANCE) < 0.1


def test_white_balance_takes_out_most_of_a_cast():
    cast = scene() * np.array([1.0, 0.9, 0.5], np.float32)
    spread = lambda image: np.ptp(measure(image).channels)  # noqa: E731
    assert spread(REPAIRS["fix_white_balance"](cast)) < 0.35 * spread(cast)


def test_pop_helps_the_flat_more():
    flat = (scene() - np.float32(0.5)) * np.float32(0.3) + np.float32(0.5)
    gain = lambda image: measure(REPAIRS["make_pop"](image)).contrast / measure(image).contrast  # noqa: E731
    assert gain(flat) > 1.5 and gain(flat) > gain(scene())


@pytest.mark.parametrize("kind", REPAIRS)
def test_degradation_is_visible_and_in_range(kind):
    for seed in range(8):
        spoiled = degrade(scene(), kind, np.random.default_rng(seed))
        assert spoiled.min() >= 0 and spoiled.max() <= 1 and spoiled.dtype == np.float32
        assert np.abs(spoiled - scene()).mean() > 0.02
