"""The endless order of examples: shuffled, repeatable, and what takes the place of an example that is no good."""

import io
import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mgie_jax.data.generate import EditPairs
from mgie_jax.data.images import Crop, draw_crop, square
from mgie_jax.data.order import ATTEMPTS, GeneratedExamples, RecordedExamples, Unusable, usable
from mgie_jax.data.records import DataSetError, Examples
from mgie_jax.photo import PhotoError
from mgie_jax.text.prompt import PromptError


class Records(list):
    """Records in memory, as a data source of tensorflow-datasets gives them."""

    def __getitems__(self, wanted):
        return [self[i] for i in wanted]


def png(pixels):
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def record(number, size=(24, 16), target_size=None, **changes):
    rng = np.random.default_rng(number)
    source = rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    target = rng.integers(0, 256, (*(target_size or size)[::-1], 3), dtype=np.uint8)
    fields = {"id": b"%d" % number, "source": png(source), "target": png(target), "instruction": b"make it darker"}
    return {**fields, "expressive": b"The photo is dark.", **changes}


def examples(count, name="set", **changes):
    return Examples(name, "train", Records(record(i, **changes) for i in range(count)))


def ordered(data, seed=0, **options):
    return RecordedExamples(data, seed, 16, **options)


def ids(order, places):
    return [order.find(place).id for place in places]


def test_each_epoch_holds_every_example_of_all_data_sets_once_in_another_order():
    order = ordered([examples(7, "a"), examples(4, "b")])
    first, second = ids(order, range(11)), ids(order, range(11, 22))
    expected = {f"a/{i}" for i in range(7)} | {f"b/{i}" for i in range(4)}
    assert set(first) == set(second) == expected and first != second
    assert first != sorted(first)


def test_the_order_is_a_function_of_the_seed_and_the_place():
    data = [examples(20)]
    first = ids(ordered(data), range(40))
    again = pickle.loads(pickle.dumps(ordered(data)))
    assert [again.find(place).id for place in reversed(range(40))] == first[::-1]
    assert ids(ordered(data, seed=1), range(40)) != first
    # What runs begun with an older Grain or NumPy count on.
    assert first[:8] == [f"set/{i}" for i in (18, 8, 16, 7, 4, 13, 1, 0)]


def test_weights_say_how_often_a_data_set_is_drawn_from():
    order = ordered([examples(3, "a"), examples(30, "b")], weights=(3.0, 1.0))
    drawn = Counter(name.split("/")[0] for name in ids(order, range(400)))
    assert drawn == {"a": 300, "b": 100}
    assert set(ids(order, range(120))) >= {f"b/{i}" for i in range(30)}  # each example of a set before any again


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop": "left"}, "center, random"),
        ({"weights": (1.0,)}, "2 data sets need as many weights"),
        ({"weights": (1.0, 0.0)}, "above 0"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        ordered([examples(2), examples(2)], **options)


def test_data_sets_without_examples_are_refused():
    for data in ([], [examples(0)]):
        with pytest.raises(DataSetError, match="no examples"):
            ordered(data)


def decoded(found):
    return found.pictures(8)


def test_a_broken_example_is_replaced_by_the_same_one_everywhere():
    records = Records(record(i) for i in range(12))
    records[3] = record(3, source=records[3]["source"][:300])
    records[5] = record(5, target=b"no picture")
    records[8] = record(8, expressive=b"")
    order = ordered([Examples("set", "train", records)])
    made = [usable(order, place, lambda found: (found.id, decoded(found))) for place in range(36)]
    again = [usable(order, place, lambda found: (found.id, decoded(found))) for place in reversed(range(36))][::-1]
    for ((name, pictures), skipped), ((name2, pictures2), skipped2) in zip(made, again, strict=True):
        assert (name, skipped) == (name2, skipped2)
        np.testing.assert_array_equal(pictures.source, pictures2.source)
    reasons = {id: reason for _, skipped in made for id, reason in skipped}
    assert set(reasons) == {"set/3", "set/5", "set/8"}
    assert "before: is damaged" in reasons["set/3"] and "after: is not a picture" in reasons["set/5"]
    assert "mgie prepare" in reasons["set/8"]
    assert all(name not in reasons for (name, _), _ in made)
    replaced = [name for (name, _), skipped in made if skipped]
    assert len(replaced) == 9 and len(set(replaced)) > 3  # not always the same one
    untouched = [(id, name) for id, ((name, _), skipped) in zip(ids_or_none(order), made, strict=True) if not skipped]
    assert len(untouched) == 27 and all(id == name for id, name in untouched)


def ids_or_none(order):
    def name(place):
        try:
            return order.find(place).id
        except Unusable as error:
            return error.id

    return [name(place) for place in range(36)]


def test_a_record_that_cannot_be_read_is_skipped_by_its_number():
    class Torn(Records):
        def __getitem__(self, index):
            raise OSError("bad checksum")

    with pytest.raises(Unusable) as error:
        ordered([Examples("set", "train", Torn([{}]))]).find(0)
    assert error.value.id == "set/0" and "bad checksum" in error.value.reason


def test_nothing_but_broken_examples_ends_in_an_error_that_names_some():
    with pytest.raises(DataSetError, match=rf"{ATTEMPTS} examples in a row .*set/\d+ \(has no expressive"):
        usable(ordered([examples(5, expressive=b"")]), 0, decoded)


def test_only_faults_of_examples_are_skipped():
    def fails(error):
        def make(found):
            raise error

        return make

    for error in (PromptError("too long"), PhotoError("damaged")):
        with pytest.raises(DataSetError, match="in a row"):
            usable(ordered([examples(5)]), 0, fails(error))
    with pytest.raises(ValueError, match="^labels$"):
        usable(ordered([examples(5)]), 0, fails(ValueError("labels")))


def test_center_crop_is_the_released_training_code_s():
    """`resize` and `img2npy` of its trainer: square crop, 512, then 256, both bicubic; here 20 and 10."""
    found = RecordedExamples([examples(1, size=(41, 28))], 0, 20).find(0)
    pictures = found.pictures(10)
    for kind, got in (("source", pictures.source), ("target", pictures.target)):
        photo = Image.open(io.BytesIO(record(0, size=(41, 28))[kind]))
        side = photo.crop((6, 0, 6 + 28, 28)).resize((20, 20))
        np.testing.assert_allclose(got, 2.0 * np.array(side.resize((10, 10))) / 255.0 - 1.0, atol=1e-6)
        if kind == "source":
            np.testing.assert_array_equal(pictures.seen, side)
    assert pictures.source.dtype == np.float32 and pictures.source.shape == (10, 10, 3)


def test_random_crops_are_the_same_for_both_pictures_and_follow_the_place():
    same = Records(record(i, size=(48, 16)) for i in range(1))
    same[0]["target"] = same[0]["source"]
    order = ordered([Examples("set", "train", same)], crop="random")
    made = [order.find(place).pictures(16) for place in range(12)]
    for pictures in made:
        np.testing.assert_array_equal(pictures.source, pictures.target)
    np.testing.assert_array_equal(made[5].source, order.find(5).pictures(16).source)
    assert len({pictures.source.tobytes() for pictures in made}) > 8


def test_a_random_crop_lies_anywhere_and_mirrors_half_of_those_that_name_no_side():
    rng = np.random.default_rng(0)
    crops = [draw_crop("random", "darker", rng) for _ in range(400)]
    assert 0.4 < np.mean([crop.mirrored for crop in crops]) < 0.6
    assert min(crop.at for crop in crops) < 0.05 and max(crop.at for crop in crops) > 0.95
    for words in ("remove the man on the left", "the Right-hand side"):
        assert not any(draw_crop("random", words, rng).mirrored for _ in range(50))
    ramp = Image.fromarray(np.broadcast_to((np.arange(300) % 256).astype(np.uint8)[:, None], (10, 300, 3)).copy())
    assert np.asarray(square(ramp, Crop(0.999), 10))[0, :, 0].tolist() == [(289 + i) % 256 for i in range(10)]
    assert np.asarray(square(ramp, Crop(0.0, True), 10))[0, :, 0].tolist() == list(range(10))[::-1]


def test_pairs_of_another_size_fit_where_their_shape_is_one():
    pictures = ordered([examples(1, target_size=(48, 32))]).find(0).pictures(8)
    assert pictures.target.shape == (8, 8, 3)
    with pytest.raises(PhotoError, match="24 x 16 and 24 x 20"):
        ordered([examples(1, target_size=(24, 20))]).find(0).pictures(8)


def test_without_a_size_the_target_is_not_even_decoded():
    pictures = ordered([examples(1, target=b"no picture")]).find(0).pictures(None)
    assert pictures.seen.size == (16, 16) and pictures.source is None and pictures.target is None


@pytest.fixture(scope="module")
def generated():
    photos = [np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)]
    return GeneratedExamples(EditPairs(photos, size=32, seed=5))


def test_generated_examples_stand_in_their_own_order(generated):
    for place in (0, 7):
        example, found = generated.pairs.example(place), generated.find(place)
        assert (found.id, found.expressive) == (f"train-5-{place}", example.expressive)
        pictures = found.pictures(16)
        np.testing.assert_array_equal(pictures.seen, example.source)
        means = example.target.reshape(16, 2, 16, 2, 3).mean((1, 3)) / 127.5 - 1
        np.testing.assert_allclose(pictures.target, means, atol=1e-6)
    with pytest.raises(ValueError, match="32 px cannot be shrunk evenly to 12 px"):
        generated.check_size(12)


def test_substitutes_of_generated_examples_are_far_away_and_repeat(generated):
    numbers = [int(generated.find(3, attempt).id.split("-")[-1]) for attempt in range(1, 5)]
    assert min(numbers) >= 2**40 and len(set(numbers)) == 4
    assert numbers[2] == int(generated.find(3, 3).id.split("-")[-1])
    assert generated.find(4, 1).id != generated.find(3, 1).id
