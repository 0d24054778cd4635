"""Editing pairs: repeatable, exact, addressable."""

import numpy as np
import pytest
from PIL import Image

from mgie_jax.data.cutouts import COLORS, Cutout, load_cutouts, place, recolored, sprite_of
from mgie_jax.data.expressive import named_edit
from mgie_jax.data.generate import KINDS, LOCAL_KINDS, EditPairs, Mix
from mgie_jax.data.ops import GLOBAL_OPS
from mgie_jax.data.repairs import REPAIRS


def disc(name, color):
    y, x = np.mgrid[0:60, 0:80]
    inside = ((x - 40) / 40) ** 2 + ((y - 30) / 30) ** 2 < 1
    return Cutout(name, np.dstack([np.broadcast_to(np.uint8(color), (60, 80, 3)), np.uint8(255) * inside]))


CUTOUTS = (disc("frog", (40, 120, 50)), disc("owl", (200, 190, 170)), disc("lemon", (240, 220, 40)))


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    shapes = ((96, 120), (100, 80), (90, 90))
    small = [rng.integers(20, 236, (6, 6, 3), dtype=np.uint8) for _ in shapes]
    return [np.asarray(Image.fromarray(s).resize(shape[::-1])) for s, shape in zip(small, shapes, strict=True)]


def same(a, b):
    return (
        np.array_equal(a.source, b.source)
        and np.array_equal(a.target, b.target)
        and (a.instruction, a.expressive, a.kind, a.box) == (b.instruction, b.expressive, b.kind, b.box)
    )


def test_random_access_resumes_exactly(photos):
    forward = [EditPairs(photos, size=32, cutouts=CUTOUTS).example(i) for i in range(40)]
    resumed = EditPairs(photos, size=32, cutouts=CUTOUTS)
    assert all(same(resumed.example(i), forward[i]) for i in reversed(range(40)))


def test_seed_and_split_change_the_sequence(photos):
    first = [EditPairs(photos, size=32).example(i) for i in range(10)]
    for other in (EditPairs(photos, size=32, seed=1), EditPairs(photos, split="heldout", size=32)):
        assert not any(same(a, other.example(i)) for i, a in enumerate(first))


def test_shape_and_text(photos):
    pairs = EditPairs(photos, size=32, cutouts=CUTOUTS)
    for example in map(pairs.example, range(150)):
        for image in (example.source, example.target):
            assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        assert example.kind in KINDS and named_edit(example.expressive) == example.kind
        assert "{" not in example.instruction + example.expressive
        assert (example.box is not None) == (example.kind in LOCAL_KINDS)


@pytest.mark.parametrize("kind", [*GLOBAL_OPS, *REPAIRS])
def test_source_and_kind_determine_the_target(kind, photos):
    example = EditPairs(photos, size=32).example_of(kind, 3)
    op = {**GLOBAL_OPS, **REPAIRS}[kind]
    expected = op(example.source.astype(np.float32) * np.float32(1 / 255)) * 255 + 0.5
    assert np.array_equal(example.target, expected.astype(np.uint8))


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_local_edits_change_nothing_outside_their_box(kind, photos):
    for index in range(12):
        example = EditPairs(photos, size=48, cutouts=CUTOUTS).example_of(kind, index)
        top, left, bottom, right = example.box
        outside = np.ones((48, 48), bool)
        outside[top:bottom, left:right] = False
        assert np.array_equal(example.source[outside], example.target[outside])
        assert not np.array_equal(example.source, example.target)


def test_added_and_removed_are_each_others_inverse(photos):
    """What "add" puts on the photo is what "remove" takes off it."""
    photo = photos[0][:64, :64].astype(np.float32) / 255
    sprite = sprite_of(CUTOUTS[0], 64)
    result, (top, left, bottom, right) = place(photo, sprite, 0.25, 0.25)
    opaque = sprite[..., 3] == 1
    assert opaque.any()
    assert np.allclose(result[top:bottom, left:right][opaque], sprite[..., :3][opaque])


def test_place_stays_inside_and_refuses_what_does_not_fit():
    photo, sprite = np.zeros((40, 40, 3), np.float32), np.ones((20, 30, 4), np.float32)
    assert place(photo, sprite, 1.0, 0.0)[1] == (0, 10, 20, 40)
    with pytest.raises(ValueError, match="does not fit"):
        place(photo[:10], sprite, 0.5, 0.5)


@pytest.mark.parametrize("color", COLORS)
def test_recolored_takes_the_color_and_keeps_the_shape(color):
    sprite = sprite_of(CUTOUTS[1], 64)
    painted = recolored(sprite, color)
    assert np.array_equal(painted[..., 3], sprite[..., 3])
    assert (painted[..., :3] <= painted[..., 3:] + 1e-6).all() and painted.min() >= 0
    mean = painted[..., :3][painted[..., 3] == 1].mean(axis=0)
    assert np.argmax(mean) == np.argmax(COLORS[color]) and np.argmin(mean) == np.argmin(COLORS[color])


def test_mix(photos):
    kinds = [EditPairs(photos, size=16, cutouts=CUTOUTS).example(i).kind for i in range(300)]
    assert 0.62 < np.mean([k in GLOBAL_OPS for k in kinds]) < 0.78
    assert 0.10 < np.mean([k in REPAIRS for k in kinds]) < 0.20
    only = EditPairs(photos, size=16, cutouts=CUTOUTS, mix=Mix(0.0, 0.0, 1.0))
    assert all(only.example(i).kind in LOCAL_KINDS for i in range(20))


def test_without_cutouts_no_local_edits(photos):
    pairs = EditPairs(photos, size=16)
    assert not any(pairs.example(i).kind in LOCAL_KINDS for i in range(200))
    with pytest.raises(ValueError, match="cannot make"):
        pairs.example_of("add", 0)


def test_heldout_photos_are_seen_whole_and_as_they_are(photos):
    example = EditPairs(photos[2:], split="heldout", size=90).example_of("invert", 0)
    assert np.array_equal(example.source, photos[2])


def test_bad_settings(photos):
    with pytest.raises(ValueError, match="split"):
        EditPairs(photos, split="test")
    with pytest.raises(ValueError, match="at least one"):
        EditPairs([])
    with pytest.raises(ValueError, match="not a mix"):
        EditPairs(photos, mix=Mix(0.0, 0.0, 0.0))


def test_load_cutouts(tmp_path):
    def write(name, caption, cutout, size=(80, 60)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(cutout.pixels).resize(size).save(path)
        path.with_suffix(".txt").write_text(caption)

    write("frog.png", "A frog.\nes.utf8=Una rana.\n", CUTOUTS[0])
    write("frog2.png", "A small frog.", CUTOUTS[0], (48, 48))
    write("gnu.png", "A gnu.", CUTOUTS[0])
    write("owl.png", "What a very long caption about an owl.", CUTOUTS[1])
    write("cartoon/lion.png", "A lion.", CUTOUTS[1])
    loaded = load_cutouts(tmp_path)
    assert [cutout.name for cutout in loaded] == ["frog"]
    assert loaded[0].pixels.shape[1] > 70
    with pytest.raises(FileNotFoundError):
        load_cutouts(tmp_path / "absent")


def test_weights_shift_kinds_within_their_family(photos):
    pairs = EditPairs(photos, size=16, seed=3, mix=Mix(1.0, 0.0, 0.0), weights={"warmer": 60.0})
    kinds = [pairs.example(i).kind for i in range(200)]
    share = 60 / (60 + len(GLOBAL_OPS) - 1)
    assert abs(kinds.count("warmer") / len(kinds) - share) < 0.1


@pytest.mark.parametrize(
    "weights, words", [({"wamer": 2.0}, "unknown kinds wamer"), ({"warmer": 0.0}, "must be above 0")]
)
def test_bad_weights(photos, weights, words):
    with pytest.raises(ValueError, match=words):
        EditPairs(photos, weights=weights)
