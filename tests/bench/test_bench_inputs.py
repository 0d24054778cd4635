"""Weights, words and batches that are drawn: the same in every process, and such as the networks take."""

import jax
import ml_collections
import numpy as np
import pytest

from mgie_jax.bench.inputs import INSTRUCTION, as_source, draw, photo, shapes_of, source, train_batch
from mgie_jax.models import presets
from mgie_jax.train.config import default_config

KERNEL = "unet/conv_in/kernel"
GOLDEN = [-0.794183, -1.0404184, -0.0381423, -1.0053685]


def config(**values) -> ml_collections.ConfigDict:
    c = default_config()
    c.model = "test"
    c.update(values)
    return c


def test_every_process_draws_the_same():
    """Python's own hash of a name would differ from one to the next."""
    assert draw(KERNEL, (2, 2)).ravel().tolist() == pytest.approx(GOLDEN, rel=1e-5)


def test_each_parameter_is_drawn_for_itself():
    assert not np.array_equal(draw(KERNEL, (3, 3, 8, 32)), draw(KERNEL.replace("in", "out"), (3, 3, 8, 32)))


@pytest.mark.parametrize(
    "name, shape, spread",
    [
        (KERNEL, (3, 3, 8, 32), 72**-0.5),
        ("mllm/model/layers/mlp/up_proj/kernel", (50, 64, 32), 64**-0.5),  # 50 layers, each of 64 inputs
        ("edit_head/mapper/encoder/layers.0/self_attn/in_proj_weight", (96, 32), 32**-0.5),
        ("mllm/model/embed_tokens/embedding", (320, 32), 0.02),
    ],
)
def test_weights_are_scaled_by_their_inputs(name, shape, spread):
    drawn = draw(name, shape)
    assert drawn.dtype == np.float32 and drawn.shape == shape
    assert drawn.std() == pytest.approx(spread, rel=0.05) and abs(drawn.mean()) < 0.1 * spread


def test_norms_and_biases_begin_as_usual():
    assert (draw("a/scale", (5,)) == 1).all() and (draw("a/in_proj_bias", (5,)) == 0).all()


def test_random_parameters_are_the_models(bench_source):
    params = bench_source.params(np.float16)
    emb = params.pop("emb")
    shapes = shapes_of(presets.test())
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, shapes)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float16)}
    assert np.array_equal(emb, params["mllm"]["model"]["embed_tokens"]["embedding"][-8:])
    assert set(bench_source.params(np.float32, ("unet",))) == {"unet"}


def test_a_model_directory_gives_its_own(tiny_model_dir, tiny_params):
    found = source(config(init=str(tiny_model_dir)))
    params = found.params(np.float32)
    assert np.array_equal(params["unet"]["conv_in"]["kernel"], tiny_params["unet"]["conv_in"]["kernel"])
    assert np.array_equal(params["emb"], tiny_params["emb"])
    assert found.tokenizer().vocab_size == 320


def test_the_tokenizer_of_random_weights_fits_them(bench_source):
    tokenizer, sizes = bench_source.tokenizer(), bench_source.sizes
    assert tokenizer.vocab_size == sizes.mllm.llm.vocab_size
    assert tokenizer.im_patch_id == sizes.mllm.im_patch_id and tokenizer.img_ids[-1] == sizes.mllm.llm.vocab_size - 1
    assert tokenizer.encode_prompt(INSTRUCTION).count(sizes.mllm.im_patch_id) == sizes.mllm.vision.num_patches


def test_a_source_can_be_made_again_elsewhere():
    found = source(config(), size=(32, 64), steps=2)
    assert as_source(found.request) == found
    assert (found.sizes.sampling.steps, found.sizes.sampling.resolution) == (2, 45)


@pytest.mark.parametrize(
    "values, size, words", [({}, (30, 32), "--size 30x32.*multiples of 4"), ({"model": "tset"}, None, "tset")]
)
def test_bad_sources_are_refused(values, size, words):
    with pytest.raises(ValueError, match=words):
        source(config(**values), size)


def test_photos_differ_by_seed_alone():
    a, b, c = (np.asarray(photo((40, 30), seed)) for seed in (1, 1, 2))
    assert a.shape == (30, 40, 3) and np.array_equal(a, b) and not np.array_equal(a, c)


def test_a_training_batch_has_patches_and_img_tokens():
    batch = train_batch(config(batch_size=3, max_tokens=64, image_size=16), presets.test())
    ids, labels = batch.text.ids, batch.text.labels
    assert ids.shape == (3, 64) and batch.source.shape == batch.target.shape == (3, 16, 16, 3)
    assert ((ids == 309).sum(-1) == 4).all() and all(list(row[row >= 312]) == list(range(312, 320)) for row in ids)
    counted = labels != -100
    assert (labels[counted] == ids[counted]).all() and not counted[ids == 309].any() and batch.text.mask[counted].all()
    assert len({int(n) for n in batch.text.mask.sum(-1)}) > 1
    with pytest.raises(ValueError, match="max_tokens is 20: no room"):
        train_batch(config(max_tokens=20), presets.test())
