"""`mgie data`, `train`, `curves` and `edit --model`: from a folder of photos to an edit by a model trained on it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mgie_jax
from mgie_jax import cli
from mgie_jax.cli.train import read_config
from mgie_jax.train import start
from mgie_jax.weights.files import load_model_dir

ROOT = Path(mgie_jax.__file__).parents[1]
CONFIG = str(ROOT / "configs" / "test.py")

pytestmark = pytest.mark.skipif(not (ROOT / "configs").is_dir(), reason="not a source tree")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder as `mgie data photos` makes it."""
    folder = tmp_path_factory.mktemp("data")
    source = folder / "source"
    source.mkdir()
    rng = np.random.default_rng(0)
    for i in range(24):
        hills = np.cumsum(np.cumsum(rng.normal(0, 1, (200, 260, 3)), 0), 1)
        hills = (hills - hills.min()) / (hills.max() - hills.min()) * 215 + rng.normal(20, 6, hills.shape)
        Image.fromarray(np.clip(hills, 0, 255).astype(np.uint8)).save(source / f"{i}.png")
    assert cli.main(["data", "photos", str(folder / "photos"), str(source), "--exclude", "*/7.png"]) == 0
    return folder / "photos"


def test_collected_photos(photos, capsys, tmp_path):
    index = json.loads((photos / "index.json").read_text())
    assert 10 < len(index) < 24 and not any(entry["origin"].endswith("/7.png") for entry in index)
    assert cli.main(["data", "show", str(photos), "-o", str(tmp_path / "sheet.png"), "-n", "3"]) == 0
    assert Image.open(tmp_path / "sheet.png").height > 3 * 100
    assert cli.main(["data", "show", str(tmp_path), "-o", str(tmp_path / "sheet.png")]) == 2
    assert "mgie data photos" in capsys.readouterr().err


def test_every_stage_then_an_edit(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(start, "TOKENIZER_EXAMPLES", 200)
    init = ""
    for stage in ("vae", "mllm", "joint"):
        workdir = tmp_path / stage
        arguments = ["train", "--config", f"{CONFIG}:{stage}", "--workdir", str(workdir)]
        arguments += [f"--config.photos={photos}", f"--config.init={init}"]
        assert cli.main(arguments) == 0, capsys.readouterr().err
        before, init = init, str(workdir / "model")
        _, params = load_model_dir(init)
        if before:
            _, old = load_model_dir(before)
            changed = {name for name in params if not same(params[name], old[name])}
            # The embedding of the [IMG] tokens is the MLLM's.
            assert changed == {"mllm": {"mllm", "emb"}, "joint": {"mllm", "emb", "edit_head", "unet"}}[stage]
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2]
    assert cli.main(["export", str(workdir), str(tmp_path / "exported")]) == 0
    assert (tmp_path / "exported" / "SHA256SUMS").read_bytes() == (workdir / "model" / "SHA256SUMS").read_bytes()

    assert cli.main(["curves", str(tmp_path / "c.png"), str(tmp_path / "vae"), str(tmp_path / "joint")]) == 0
    assert Image.open(tmp_path / "c.png").width > 600
    Image.new("RGB", (50, 40), "olive").save(tmp_path / "p.png")
    edit = ["edit", str(tmp_path / "p.png"), "darker", "--model", init, "-o", str(tmp_path / "e.png")]
    assert cli.main(edit) == 0
    assert Image.open(tmp_path / "e.png").size[0] > 16


def same(a, b):
    import jax

    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nowhere.py"], "nowhere.py"),
        (["--config", f"{CONFIG}:joint"], "config.photos are empty"),
        (["--config", f"{CONFIG}:sideways", "--config.photos=x"], "config.stage is 'sideways'"),
        (["--config", CONFIG, "--config.photos=/nowhere"], "/nowhere"),
        (["--config", CONFIG, "--config.stpes=3"], "stpes"),
        (["--config", CONFIG, "--config.steps=many"], "many"),
        (["--config", CONFIG, "--steps=3"], "steps"),
    ],
)
def test_mistakes_are_named(arguments, message, tmp_path, capsys):
    assert cli.main(["train", "--workdir", str(tmp_path / "w"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mgie: error: ") and message in error
    assert not (tmp_path / "w").exists()


def test_overrides_keep_their_types():
    config = read_config(CONFIG, ["--config.steps=7", "--config.trainable=('unet/',)", "--config.ema_decay=0.5"])
    assert (config.steps, config.trainable, config.ema_decay) == (7, ("unet/",), 0.5)
