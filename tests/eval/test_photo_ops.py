"""The photo-ops suite: a perfect editor scores perfectly, one that does nothing scores nothing."""

import numpy as np
import pytest
from PIL import Image

from mgie_jax.cli.eval import heldout_photos, table
from mgie_jax.data.expressive import expressive
from mgie_jax.data.generate import EditPairs
from mgie_jax.data.ops import GLOBAL_OPS
from mgie_jax.data.photo_stats import measure
from mgie_jax.data.repairs import REPAIRS
from mgie_jax.editor import Editor, EditResult
from mgie_jax.eval import photo_ops as suite
from mgie_jax.eval.metrics import l1, psnr
from mgie_jax.loading import load
from mgie_jax.models import presets


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    light = np.linspace(0.1, 0.8, 48)[:, None, None] * np.array([1.0, 0.7, 0.4])
    return [np.uint8(255 * np.clip(light + rng.normal(0, 0.08, (48, 64, 3)), 0, 1)) for _ in range(3)]


class Oracle(Editor):
    """Knows each photo's true result, or keeps every photo as it is."""

    def __init__(self, photos, perfect):
        self.config, self.params, self.perfect = presets.test(), None, perfect
        pairs = EditPairs(photos, split="heldout", seed=0, size=32)
        examples = [pairs.example_of(kind, i) for kind in (*GLOBAL_OPS, *REPAIRS) for i in range(2)]
        self.answers = {(e.source.tobytes(), e.instruction): e for e in examples}

    def edit_many(self, photos, instructions, seeds, steps):
        results = []
        for photo, text in zip(photos, instructions, strict=True):
            example = self.answers[np.asarray(photo).tobytes(), text]
            stats = measure(example.source / np.float32(255))
            words = expressive(example.kind, stats, np.random.default_rng(0)) if self.perfect else "Nothing changes."
            picture = example.target if self.perfect else example.source
            results.append(EditResult(Image.fromarray(picture), photo, words, 0, {}, None, np.zeros((8, 32))))
        return results


@pytest.fixture
def report_of(photos, monkeypatch):
    monkeypatch.setattr(suite, "reconstruct", lambda editor, squares: list(squares))
    return lambda perfect: suite.photo_ops(Oracle(photos, perfect), photos, per_kind=2)


def test_a_perfect_editor(report_of):
    report = report_of(True)
    summary = report.summary
    assert summary["halved"] == summary["visible_kinds"] >= 20
    assert summary["mean_psnr"] == summary["reconstruction_psnr"] == 100
    assert summary["direction"] == summary["named"] == summary["repairs_named"] == 1
    assert "right edit named             100.0%" in table(report)


def test_an_editor_that_does_nothing(report_of):
    summary = report_of(False).summary
    assert summary["halved"] == summary["direction"] == summary["named"] == 0
    assert summary["mean_psnr"] < 25


def test_reconstruction_is_the_autoencoders(tiny_model_dir, photos):
    squares = [photo[:32, :32] for photo in photos]
    restored = suite.reconstruct(load(tiny_model_dir), squares)
    assert [r.shape for r in restored] == [s.shape for s in squares] and restored[0].dtype == np.uint8
    assert not np.array_equal(restored[0], restored[1])


def test_distances():
    black, white = np.zeros((4, 4, 3), np.float32), np.ones((4, 4, 3), np.float32)
    assert (l1(black, white), psnr(black, white), psnr(black, black)) == (1.0, 0.0, 100.0)
    assert np.isclose(psnr(black, black + 0.1), 20.0)


def test_folders_of_photos(tmp_path):
    with pytest.raises(ValueError, match="no photos"):
        heldout_photos(tmp_path)
    Image.new("RGB", (300, 200), "teal").save(tmp_path / "a.png")
    assert len(heldout_photos(tmp_path)) == 1
    with pytest.raises(ValueError, match="no such folder"):
        heldout_photos(tmp_path / "nowhere")
