"""The bundled model, for real: loaded, asked, and held to what its card says of it in kind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mgie_jax
from mgie_jax.data.expressive import named_edit
from mgie_jax.data.photo_stats import measure

PHOTO = Path(mgie_jax.__file__).parent / "assets" / "photos" / "coffee.jpg"


@pytest.fixture(scope="module")
def editor():
    return mgie_jax.load()


def stats(photo):
    return measure(np.asarray(photo, np.float32) / 255)


def test_weights_fit_the_repository():
    total = sum(path.stat().st_size for path in mgie_jax.default_model_dir().rglob("*"))
    assert total <= 60e6


@pytest.mark.parametrize(
    ("instruction", "kind"),
    [
        ("make it darker", "darker"),
        ("make the photo brighter please", "brighter"),
        ("black and white", "black_and_white"),
        ("add fog", "fog"),
        ("could you give it a sepia tone?", "sepia"),
        ("invert the colors", "invert"),
        ("blur the whole thing", "blur"),
        ("lower the contrast", "contrast_down"),
        ("a washed out matte style", "faded"),
        ("fix the white balance", "fix_white_balance"),
    ],
)
def test_it_writes_what_was_asked(editor, instruction, kind):
    result = editor.edit(PHOTO, instruction, steps=1)
    assert named_edit(result.expressive) == kind


@pytest.mark.parametrize(
    ("instruction", "of", "sign"),
    [
        ("make it look like night", lambda s: s.luminance, -1),
        ("make the photo brighter please", lambda s: s.luminance, 1),
        ("make it darker", lambda s: s.luminance, -1),
        ("lower the contrast", lambda s: s.contrast, -1),
        ("black and white", lambda s: s.saturation, -1),
        ("make it warmer", lambda s: s.channels[0] - s.channels[2], 1),
        ("make it cooler", lambda s: s.channels[0] - s.channels[2], -1),
        ("put a blue tint on it", lambda s: s.channels[2] - s.channels[0], 1),
        ("add a vignette", lambda s: s.luminance, -1),
        ("turn it into a pencil sketch", lambda s: s.saturation, -1),
        ("invert the colors", lambda s: s.channels[0] - s.channels[2], -1),
    ],
)
def test_it_does_what_was_asked(editor, instruction, of, sign):
    result = editor.edit(PHOTO, instruction)
    assert sign * (of(stats(result.image)) - of(stats(result.before))) > 0.05


def test_the_command_from_start_to_finish(tmp_path):
    """One real process: a photo in, a picture, a comparison and one line of JSON out."""
    output = tmp_path / "night.png"
    command = [sys.executable, "-m", "mgie_jax.cli", "edit", str(PHOTO), "make it look like night", "-o", str(output),
               "--steps", "4", "--compare", "--json"]  # fmt: skip
    root = Path(mgie_jax.__file__).parents[1]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)})
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert run.stdout.count("\n") == 1
    assert "Denoising" in run.stderr
    with Image.open(output) as picture, Image.open(tmp_path / "night-compare.png") as comparison:
        assert list(picture.size) == answer["size"] and comparison.width > 2 * picture.width
    assert answer["expressive"].endswith(".") and answer["seed"] == 0
    assert {"load", "write", "denoise", "decode", "save"} <= set(answer["seconds"])
