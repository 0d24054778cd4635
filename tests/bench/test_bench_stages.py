"""The work of each stage, against counts made otherwise, and that what is run is what is counted."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image

from mgie_jax.bench import cold, edits, host, stages
from mgie_jax.bench.case import make_case
from mgie_jax.bench.inputs import as_source
from mgie_jax.train.flops import step_flops


@pytest.fixture(scope="module")
def works(bench_case):
    return {name: stages.stage(bench_case, name) for name in stages.DEVICE}


def nbytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def test_all_stages_have_titles():
    assert set(stages.DEVICE) | set(host.HOST) | set(cold.COLD) == set(stages.TITLES)
    assert set(stages.STAGES) == set(stages.DEVICE)


def test_the_flops_are_those_of_the_networks(bench_case, works):
    """`train.flops` counts the networks' sizes, the bench the programs' products; both of one photo."""
    sizes, tokens = bench_case.model.config, bench_case.inputs["embeds"].shape[1]
    llm, rows = sizes.mllm.llm, bench_case.rows
    whole = step_flops(sizes, (), tokens=tokens, image_size=32, batch_size=rows).forward * rows
    # The bench's prompt has logits at its end alone, and attends to a cache with room for the answer.
    less = 2 * rows * (tokens - 1) * llm.hidden_size * llm.vocab_size
    more = 4 * rows * tokens * sizes.sampling.max_new_tokens * llm.hidden_size * llm.num_hidden_layers
    flops = {name: work.flops for name, work in works.items()}
    null = flops["head"] / rows
    counted = flops["vision"] + flops["prefill"] + flops["head"] + null + 2 * flops["encode"] + flops["unet"] / 3
    # The first convolution of the VAE has a fourth channel, of zeros.
    zeros = 2 * rows * (2 * 32**2 * 9 * sizes.vae.block_out_channels[0])
    assert counted == whole - less + more + zeros


def test_the_flops_of_a_token(bench_case, works):
    sizes, rows = bench_case.model.config, bench_case.rows
    c, slots = sizes.mllm.llm, bench_case.batch.ids.shape[1] + sizes.sampling.max_new_tokens
    kv = c.num_key_value_heads * c.head_dim
    layer = 2 * c.hidden_size * (2 * c.hidden_size + 2 * kv + 3 * c.intermediate_size) + 4 * slots * c.hidden_size
    assert works["decode"].flops == rows * (c.num_hidden_layers * layer + 2 * c.hidden_size * c.vocab_size)
    assert works["decode"].units == 11


def test_a_step_is_a_unet_and_little_else(works):
    assert 0.9 * works["unet"].flops < works["step"].flops <= works["unet"].flops
    assert works["step"].units == works["sampler"].units == 3
    assert works["sampler"].flops == 0


def test_the_bytes_are_what_is_read_and_written(bench_case, works):
    x, params = bench_case.inputs, bench_case.params
    head = nbytes(params["edit_head"]) + x["states"].nbytes + x["guidance"].nbytes
    assert works["head"].bytes == head
    assert works["unet"].bytes == nbytes(params["unet"]) + x["context"].nbytes + x["sample"].nbytes * 3 // 2 + 4 * 6
    # The tower's last layer, its last norm, the encoder's half of the autoencoder are not read.
    assert works["vision"].bytes < nbytes(params["mllm"]["vision_tower"]) + 2**15
    assert works["vae"].bytes < nbytes(params["vae"])
    cache = 2 * 2 * bench_case.rows * (bench_case.batch.ids.shape[1] + 12) * 2 * 8 * 4  # keys, values; layers
    layers = [tree for name, tree in params["mllm"]["model"].items() if name.startswith("layers")]
    llm = nbytes(layers) + nbytes(params["mllm"]["lm_head"])
    assert works["decode"].bytes == pytest.approx(llm + cache, rel=0.05)


@pytest.mark.parametrize("name", stages.DEVICE)
def test_each_stage_runs(works, name):
    work = works[name]
    work.run()
    if work.minus:
        work.minus()
    for output in work.outputs().values():
        assert np.isfinite(output).all() and output.std() > 0


def test_an_answer_has_all_its_tokens(works):
    assert works["decode"].outputs()["tokens"].shape == (2, 12)


def test_the_host_opens_and_saves_real_files(bench_case, tmp_path):
    opened = host.stage(bench_case, "open", tmp_path)
    assert Image.open(tmp_path / "photo.jpg").size == host.PHOTO and len(opened.run()) == 2
    host.stage(bench_case, "save", tmp_path).run()
    assert Image.open(io.BytesIO((tmp_path / "edited.png").read_bytes())).size == (32, 32)


def test_an_edit_is_the_work_of_its_stages(bench_case):
    work = edits.work(bench_case)
    made = work.outputs()
    assert made["pixels"].shape == (2, 32, 32, 3) and made["tokens"].shape[0] == 2
    assert all(picture.std() > 5 for picture in made["pixels"])
    steps = stages.stage(bench_case, "step")
    assert 3 * steps.flops < work.flops < 4 * steps.flops + stages.stage(bench_case, "vae").flops * 4


def test_photos_need_not_be_square(bench_source):
    wide = as_source(bench_source.request | {"size": [32, 64]})
    made = make_case(wide, wide.tokenizer(), np.float32, (32, 64), 1)
    assert made.inputs["pixels"].shape == (1, 32, 64, 3) and made.inputs["latents"].shape == (1, 16, 32, 4)


def test_a_sampler_without_noise_is_given_none(bench_source):
    sampling = dataclasses.replace(bench_source.sizes.sampling, sampler="ddim")
    quiet = dataclasses.replace(bench_source, sizes=dataclasses.replace(bench_source.sizes, sampling=sampling))
    made = make_case(quiet, quiet.tokenizer(), np.float32, None, 1)
    assert made.inputs["noises"].shape == (0, 1, 16, 16, 4)
