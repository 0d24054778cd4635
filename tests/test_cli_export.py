"""`mgie export`: a checkpoint and what its run began with become a directory that PyTorch loads; same in, same out."""

import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from diffusers import UNet2DConditionModel
from flax.traverse_util import flatten_dict

from mgie_jax import cli
from mgie_jax.train.checkpoint import Checkpoints
from mgie_jax.train.config import default_config
from mgie_jax.train.state import TrainState, split_params
from mgie_jax.train.tasks import MODES
from mgie_jax.weights.files import load_model_dir


def save(workdir, params, *, ema=None, step=3, **changes):
    """A checkpoint as the loop saves it, of parameters that no training made."""
    config = default_config()
    config.update({"model": "test", "photos": "photos", "ema_decay": 0.0 if ema is None else 0.9, **changes})
    as_arrays = lambda tree: jax.tree.map(jax.numpy.asarray, tree)  # noqa: E731
    params, ema = as_arrays(params), None if ema is None else as_arrays(ema)
    state = TrainState(jax.numpy.int32(step), params, optax.adamw(1e-3).init(params), ema)
    with Checkpoints(workdir, config) as checkpoints:
        checkpoints.save(step, state)
    return workdir


@pytest.fixture(scope="module")
def trained(tiny_params):
    """What E2E training changes of the tiny model, changed; and an average that is neither."""
    params, _ = split_params({name: tree for name, tree in tiny_params.items() if name != "emb"}, MODES["E2E"])
    return tuple(jax.tree.map(lambda x, by=by: np.asarray(x) + np.float32(by), params) for by in (0.25, 0.5))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, tiny_model_dir, trained):
    folder = tmp_path_factory.mktemp("run") / "joint"
    save(folder, trained[0], step=2, init=str(tiny_model_dir), ema=trained[0])
    return save(folder, trained[0], step=3, init=str(tiny_model_dir), ema=trained[1])


def export(capsys, *arguments):
    assert cli.main(["export", *map(str, arguments), "--json"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def bytes_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_what_was_trained_and_what_was_not(workdir, trained, tiny_params, tmp_path, capsys):
    answer = export(capsys, workdir, tmp_path / "model")
    assert (answer["step"], answer["ema"], answer["dtype"]) == (3, True, "float32")
    assert answer["bytes"] == sum(len(content) for content in bytes_of(tmp_path / "model").values())
    _, params = load_model_dir(tmp_path / "model")
    emb = params.pop("emb")
    averages = flatten_dict(trained[1])
    for path, before in flatten_dict({name: tiny_params[name] for name in params}).items():
        np.testing.assert_array_equal(flatten_dict(params)[path], averages.get(path, before))
    np.testing.assert_array_equal(emb, params["mllm"]["model"]["embed_tokens"]["embedding"][-8:])
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "model" / "unet")
    want = trained[1]["unet"]["conv_in"]["kernel"].transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(unet.conv_in.weight.detach().numpy(), want)


def test_equal_parameters_give_equal_bytes(workdir, trained, tmp_path, capsys):
    export(capsys, workdir, tmp_path / "once")
    export(capsys, workdir, tmp_path / "again")
    # A run that began with the exported model, trained less, and has changed nothing.
    resumed = save(tmp_path / "w", {"unet": trained[1]["unet"]}, init=str(tmp_path / "once"), trainable=("unet/",))
    export(capsys, resumed, tmp_path / "resumed")
    once = bytes_of(tmp_path / "once")
    assert len(once) > 12 and once == bytes_of(tmp_path / "again") == bytes_of(tmp_path / "resumed")
    # By another name of the model it began with.
    (tmp_path / "once").rename(tmp_path / "moved")
    assert cli.main(["export", str(resumed), str(tmp_path / "m")]) == 2
    assert "once" in capsys.readouterr().err
    export(capsys, resumed, tmp_path / "m", "--init", tmp_path / "moved")
    assert bytes_of(tmp_path / "m") == once


def test_step_average_dtype_and_overwrite(workdir, trained, tmp_path, capsys):
    out = tmp_path / "model"
    assert export(capsys, workdir, out, "--no-ema")["ema"] is False
    first = bytes_of(out)
    answer = export(capsys, workdir, out, "--step", "2", "--dtype", "bfloat16", "--overwrite")
    assert (answer["step"], answer["ema"], answer["dtype"]) == (2, True, "bfloat16")
    assert export(capsys, workdir, out, "--step", "2", "--overwrite")["dtype"] == "float32"
    assert bytes_of(out) == first  # at step 2 the average was what the parameters are
    assert cli.main(["export", str(workdir), str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_words_for_people(workdir, tmp_path, capsys):
    assert cli.main(["export", str(workdir), str(tmp_path / "model")]) == 0
    assert "(step 3, averaged weights, float32, " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["export", "--help"])
    text = capsys.readouterr().out
    assert "mgie export out/joint model" in text and "--no-ema" in text


def test_mistakes_are_named(workdir, trained, tmp_path, capsys):
    plain = save(tmp_path / "plain", trained[0], init=str(tmp_path / "gone"))
    (tmp_path / "folder").mkdir()
    for arguments, words in [
        ([tmp_path / "nowhere", tmp_path / "m"], "there is no such folder"),
        ([tmp_path / "folder", tmp_path / "m"], "no checkpoint"),
        ([workdir, tmp_path / "m", "--step", "7"], "there are: 2, 3"),
        ([plain, tmp_path / "m", "--ema"], "no averaged weights"),
        ([plain, tmp_path / "m"], str(tmp_path / "gone")),
        ([workdir, tmp_path / "folder", "--overwrite"], "is no model directory"),
    ]:
        assert cli.main(["export", *map(str, arguments)]) == 2, arguments
        error = capsys.readouterr().err
        assert error.startswith("mgie: error: ") and words in error and error.count("\n") == 1
    assert not (tmp_path / "m").exists()
