"""Batches: what is in their rows, the same on any number of hosts and workers, and what is skipped."""

import dataclasses
import io
import json
import pickle

import jax
import numpy as np
import pytest
from PIL import Image

from mgie_jax.data.builders.build import build
from mgie_jax.data.generate import EditPairs
from mgie_jax.data.order import GeneratedExamples, RecordedExamples
from mgie_jax.data.pipeline import HostBatch, host_rows, stream
from mgie_jax.data.records import Examples
from mgie_jax.models import presets
from mgie_jax.photo import CLIP_MEAN, CLIP_STD, clip_pixels, decode_photo, to_pixels
from mgie_jax.text.prompt import IGNORE
from mgie_jax.train.batches import EditPairBatches, TextBatches
from mgie_jax.train.loss import EditPairBatch, TextBatch
from mgie_jax.weights.files import load_tokenizer

CONFIG = presets.test()
LENGTH = 384  # the tiny vocabulary spells most words out


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return load_tokenizer(tiny_model_dir, CONFIG)


@pytest.fixture(scope="module")
def photos():
    small = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 3), np.uint8)
    return [np.asarray(Image.fromarray(pixels).resize((96, 72))) for pixels in small]


@pytest.fixture(scope="module")
def pairs(photos):
    return EditPairs(photos, size=32, seed=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory, photos):
    """Two built data sets, of 9 and of 5 examples."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "photos").mkdir()
    for i, pixels in enumerate(photos):
        Image.fromarray(pixels).save(folder / "photos" / f"{i}.png")
    index = [{"name": f"{i}.png", "origin": "", "size": [96, 72], "split": "train"} for i in range(len(photos))]
    (folder / "photos" / "index.json").write_text(json.dumps(index))
    for name, count in (("a", 9), ("b", 5)):
        build("generated", folder / "photos", folder / name, examples=count, size=40, seed=count)
    return f"{folder / 'a'}, {folder / 'b'}"


@pytest.fixture(scope="module", params=["generated", "recorded"])
def batches(request, pairs, tokenizer):
    if request.param == "generated":
        examples = GeneratedExamples(pairs)
    else:
        data = request.getfixturevalue("data")
        examples = RecordedExamples.open(data, seed=1, resolution=32, crop="random")
    return EditPairBatches(examples, tokenizer, CONFIG, 4, LENGTH, 16)


def assert_same(one, other):
    assert jax.tree.structure(one.arrays) == jax.tree.structure(other.arrays)
    for left, right in zip(jax.tree.leaves(one.arrays), jax.tree.leaves(other.arrays), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    assert (one.ids, one.skipped) == (other.ids, other.skipped)


def joined(parts):
    arrays = jax.tree.map(lambda *rows: np.concatenate(rows), *(part.arrays for part in parts))
    return type(parts[0])(arrays, sum((part.ids for part in parts), ()), sum((part.skipped for part in parts), ()))


@pytest.mark.parametrize("hosts", [2, 4])
def test_any_number_of_hosts_sees_the_same_batch(batches, hosts):
    for number in (0, 5):
        parts = [batches(number, host_rows(4, host, hosts)) for host in range(hosts)]
        assert_same(joined(parts), batches(number, slice(None)))
    assert_same(batches(2, np.array([0, 3])), joined([batches(2, slice(0, 1)), batches(2, slice(3, 4))]))


def test_the_size_of_a_batch_only_cuts_the_order_up(batches, tokenizer):
    larger = EditPairBatches(batches.examples, tokenizer, CONFIG, 8, LENGTH, 16)
    assert_same(larger(1, slice(None)), joined([batches(2, slice(None)), batches(3, slice(None))]))


def test_batches_can_be_pickled(batches):
    batches(1, slice(None))  # whatever is made on first use must not be in the way
    assert_same(pickle.loads(pickle.dumps(batches))(1, slice(None)), batches(1, slice(None)))


def test_rows_of_generated_pairs(pairs, tokenizer):
    batch = EditPairBatches(GeneratedExamples(pairs), tokenizer, CONFIG, 4, LENGTH, 16)(2, slice(1, 3))
    arrays = batch.arrays
    assert isinstance(arrays, EditPairBatch) and batch.ids == ("train-3-9", "train-3-10") and not batch.skipped
    assert arrays.source.dtype == arrays.target.dtype == np.float32 and arrays.source.shape == (2, 16, 16, 3)
    for row, place in enumerate((9, 10)):
        example = pairs.example(place)
        ids, labels = tokenizer.encode_example(example.instruction, example.expressive)
        n = len(ids)
        assert arrays.text.ids[row].tolist() == ids + [tokenizer.pad_id] * (LENGTH - n)
        assert arrays.text.labels[row].tolist() == labels + [IGNORE] * (LENGTH - n)
        assert arrays.text.mask[row].tolist() == [True] * n + [False] * (LENGTH - n)
        seen = clip_pixels(Image.fromarray(example.source), 28, CLIP_MEAN, CLIP_STD)
        np.testing.assert_array_equal(arrays.text.clip_pixels[row], seen)
        for got, photo in ((arrays.source, example.source), (arrays.target, example.target)):
            blocks = photo.reshape(16, 2, 16, 2, 3).mean((1, 3), dtype=np.float32) / 127.5 - 1.0
            np.testing.assert_array_equal(got[row], blocks)


def test_rows_of_a_data_set(data, tokenizer):
    examples = RecordedExamples.open(data, seed=0, resolution=32)
    batch = EditPairBatches(examples, tokenizer, CONFIG, 14, LENGTH, 16)(0, slice(None))
    assert sorted(batch.ids) == sorted(f"generated/train-{n}-{i}" for n in (9, 5) for i in range(n))
    stored = {f"generated/{example.id}": example for one in examples.data for example in one}
    for row, name in enumerate(batch.ids):
        photo = decode_photo(stored[name].source, name).resize((32, 32), Image.Resampling.BICUBIC)
        seen = clip_pixels(photo, 28, CLIP_MEAN, CLIP_STD)
        np.testing.assert_array_equal(batch.arrays.text.clip_pixels[row], seen)
        small = to_pixels(photo.resize((16, 16), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(batch.arrays.source[row], small)


def test_text_batches_are_the_text_of_edit_pair_batches(batches, tokenizer):
    text = TextBatches(batches.examples, tokenizer, CONFIG, 4, LENGTH)(1, slice(None))
    assert isinstance(text.arrays, TextBatch)
    whole = batches(1, slice(None))
    assert_same(text, HostBatch(whole.arrays.text, whole.ids, whole.skipped))


def test_an_example_that_needs_too_many_tokens_is_skipped(pairs, tokenizer):
    lengths = [len(tokenizer.encode_example(e.instruction, e.expressive)[0]) for e in map(pairs.example, range(8))]
    limit = sorted(lengths)[4]
    batch = TextBatches(GeneratedExamples(pairs), tokenizer, CONFIG, 8, limit)(0, slice(None))
    long = {f"train-3-{i}": length for i, length in enumerate(lengths) if length > limit}
    assert long and {id: reason for id, reason in batch.skipped if id in long} == {
        id: f"is {length} tokens long with the prompt around it, the limit is {limit}" for id, length in long.items()
    }
    assert batch.arrays.ids.shape == (8, limit) and (batch.arrays.mask.sum(1) <= limit).all()
    assert [id for id in batch.ids if len(id) < 12] == [f"train-3-{i}" for i, n in enumerate(lengths) if n <= limit]


def test_labels_that_cannot_be_placed_are_an_error_and_no_skip(pairs, tokenizer, monkeypatch):
    one_token_a_text = {}
    monkeypatch.setattr(tokenizer, "_encode", lambda text: [one_token_a_text.setdefault(text, len(one_token_a_text))])
    with pytest.raises(ValueError, match="merges 'ASSISTANT:'"):
        TextBatches(GeneratedExamples(pairs), tokenizer, CONFIG, 2, LENGTH)(0, slice(None))


def test_sizes_that_do_not_fit_are_refused_before_anything_is_made(pairs, tokenizer):
    with pytest.raises(ValueError, match="32 px cannot be shrunk evenly to 24 px"):
        EditPairBatches(GeneratedExamples(pairs), tokenizer, CONFIG, 2, LENGTH, 24)


class _Broken(Examples):
    """A data set of which one picture is cut short."""

    def __init__(self, examples):
        super().__init__(examples.name, "train", examples)

    def __getitem__(self, index):
        example = self._records[index]
        return example if index != 4 else dataclasses.replace(example, source=example.source[:200])


def test_any_number_of_workers_makes_the_same_batches_and_skips_the_same_examples(data, tokenizer):
    one, other = RecordedExamples.open(data, seed=0, resolution=32).data
    examples = RecordedExamples([_Broken(one), other], 0, 32, crop="random")
    batches = EditPairBatches(examples, tokenizer, CONFIG, 4, LENGTH, 16)
    made = {workers: list(stream(batches, 1, 6, slice(None), workers, prefetch=2)) for workers in (0, 2)}
    for number, by_thread, by_workers in zip(range(1, 6), made[0], made[2], strict=True):
        assert_same(by_thread, batches(number, slice(None)))
        assert_same(by_workers, by_thread)
    ((id, reason),) = {skip for batch in made[2] for skip in batch.skipped}
    assert id == "generated/train-9-4" and "damaged" in reason
    assert all(id not in batch.ids and len(batch.ids) == 4 for batch in made[2])


def test_pngs_are_what_was_built(data):
    """The fixture is what it says: pictures of 40 px."""
    example = RecordedExamples.open(data, seed=0, resolution=32).data[1][0]
    assert Image.open(io.BytesIO(example.source)).size == (40, 40)
