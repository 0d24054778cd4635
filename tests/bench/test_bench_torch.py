"""The PyTorch peer computes what our stages compute: transformers' and diffusers' networks, loop and pipeline."""

import numpy as np
import pytest
import torch

from mgie_jax.bench import edits, stages, training
from mgie_jax.bench.compare import compare, compare_losses
from mgie_jax.bench.inputs import source
from mgie_jax.bench.torch_edit import Peer, networks
from mgie_jax.bench.torch_peer import host
from mgie_jax.bench.torch_training import training_step
from mgie_jax.train.config import default_config


@pytest.fixture(scope="module")
def torch_peer(bench_case, bench_source):
    request = {"dtype": "float32", "platform": "cpu", "tokens": bench_case.tokens,
               "special": vars(edits.special(bench_case))}  # fmt: skip
    return Peer(bench_source, bench_case.inputs, request, compiled=False)


def arrays(outputs):
    return {name: host(x) for name, x in outputs.items()}


@pytest.mark.parametrize("name", stages.DEVICE)
def test_a_stage_computes_the_same(bench_case, torch_peer, name):
    ours = stages.stage(bench_case, name).outputs()
    with torch.no_grad():
        theirs = arrays(torch_peer.stages()[name][0]())
    error, remark = compare(ours, theirs, "float32", "cpu")
    assert error < 1e-4 and not remark
    # One that computed nothing of the kind would be found out.
    first = sorted(ours)[0]
    with pytest.raises(RuntimeError):
        compare({**ours, first: ours[first][::-1] + ours[first].dtype.type(3)}, theirs, "float32", "cpu")


def test_an_edit_is_the_same_picture(bench_case, torch_peer):
    with torch.no_grad():
        theirs = arrays(torch_peer.edit(edits.photos(bench_case)))
    assert compare(edits.work(bench_case).outputs(), theirs, "float32", "cpu") == (0.0, "")
    assert theirs["pixels"].std() > 5


def test_the_states_of_an_answer_are_those_that_predict_img(torch_peer, bench_case):
    """As `edit.write` finds them, also in answers that end early or hold no [IMG0]."""
    special = edits.special(bench_case)
    hidden = torch.arange(20.0)[None, :, None].expand(3, -1, 4) + 100 * torch.arange(3.0)[:, None, None]
    # The prompt's nine last states stand first, and of each later token one: state 8 + t predicts token t.
    said = type("Said", (), {"hidden_states": [(hidden[:, :9],), *((hidden[:, 8 + t : 9 + t],) for t in range(1, 12))]})
    words = torch.full((3, 12), 7)
    words[0, 2:11] = torch.tensor([*range(special.img0, special.img0 + 8), special.eos])
    words[1, 11] = special.eos
    words[2, 3], words[2, 4:] = special.eos, special.pad
    states = torch_peer.states(said, words)[:, :, 0]
    assert states[0].tolist() == list(range(10, 18))  # that predict tokens 2 to 9
    assert states[1].tolist() == list(range(111, 119)) and states[2].tolist() == list(range(203, 211))


@pytest.mark.slow
def test_training_goes_the_same_way(bench_source):
    config = default_config()
    config.model, config.batch_size, config.image_size, config.max_tokens = "test", 2, 16, 64
    found = source(config)
    work = training.work(config, found)
    net = networks(found, torch.float32)[0]
    step = training_step(
        net, training.inputs(config, found), training.request(config, found), torch.device("cpu"), compiled=False
    )
    ours, theirs = ([float(x["loss"]) for x in (run() for _ in range(3))] for run in (work.outputs, step))
    assert compare_losses(ours, theirs, "float32") < 1e-3
    assert len(set(np.round(ours, 4))) == 3  # the updates do something
    assert work.flops > 0 and work.bytes > 4 * sum(x.numel() for x in net.parameters())
