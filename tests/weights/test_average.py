"""The mean of models: exact, in the first one's dtype, and of models of one kind alone."""

import json
import shutil

import jax
import numpy as np
import pytest

from mgie_jax import cli
from mgie_jax.weights.files import load_model_dir, save_model_dir
from mgie_jax.weights.tensor import ModelDirError


@pytest.fixture(scope="module")
def other(tiny_model_dir, tmp_path_factory):
    """The tiny model with everything twice as large."""
    config, params = load_model_dir(tiny_model_dir)
    path = tmp_path_factory.mktemp("models") / "other"
    save_model_dir(path, config, jax.tree.map(lambda x: 2 * x, params), tiny_model_dir / "tokenizer")
    return path


def test_the_mean_of_two(tiny_model_dir, other, tmp_path, capsys):
    out = tmp_path / "mean"
    assert cli.main(["convert", "average", str(tiny_model_dir), str(other), str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(out)
    config, params = load_model_dir(tiny_model_dir)
    found_config, found = load_model_dir(out)
    assert found_config == config
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, 1.5 * x, rtol=1e-6), params, found)


def test_of_one_model_the_same(tiny_model_dir, tmp_path, capsys):
    out = tmp_path / "mean"
    assert cli.main(["convert", "average", *[str(tiny_model_dir)] * 3, str(out)]) == 0
    _, params = load_model_dir(tiny_model_dir)
    _, found = load_model_dir(out)
    jax.tree.map(np.testing.assert_array_equal, params, found)


def test_what_does_not_mix(tiny_model_dir, other, tmp_path, capsys):
    assert cli.main(["convert", "average", str(tiny_model_dir), str(tmp_path / "mean")]) == 2
    assert "two model directories or more" in capsys.readouterr().err
    another = shutil.copytree(other, tmp_path / "another")
    settings = json.loads((another / "scheduler" / "scheduler_config.json").read_text())
    changed = json.dumps(settings | {"beta_end": 0.5})
    (another / "scheduler" / "scheduler_config.json").write_text(changed)
    assert cli.main(["convert", "average", str(tiny_model_dir), str(another), str(tmp_path / "mean")]) == 2
    assert "different sizes or settings" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()
    assert issubclass(ModelDirError, ValueError)
