"""The picture of held-out edits: whose parameters it shows, on what, and that it compiles once."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from mgie_jax.data.generate import EditPairs
from mgie_jax.data.order import GeneratedExamples
from mgie_jax.data.records import Examples
from mgie_jax.editor import Editor
from mgie_jax.models import presets
from mgie_jax.sharding import make_mesh
from mgie_jax.train import grid as module
from mgie_jax.train.grid import ROWS, held_out_examples, held_out_pairs, make_grid
from mgie_jax.weights.files import load_tokenizer

SIZE = 32


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 40, 3)).astype(np.uint8) for _ in range(2)]


@pytest.fixture(scope="module")
def examples(photos):
    return GeneratedExamples(EditPairs(photos, split="heldout", seed=3, size=SIZE))


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return load_tokenizer(tiny_model_dir, presets.test())


@pytest.fixture(scope="module")
def params(tiny_params):
    return {name: tree for name, tree in tiny_params.items() if name != "emb"}


@pytest.fixture(scope="module")
def grid(tokenizer, examples):
    return make_grid(presets.test(), tokenizer, examples, SIZE)


@pytest.fixture
def rows(monkeypatch):
    """The pictures and captions of each sheet, in their own sizes."""
    told = []
    sheet = module.sheet
    monkeypatch.setattr(module, "sheet", lambda rows: told.append(rows) or sheet(rows))
    return told


@pytest.mark.slow
def test_it_shows_what_an_editor_would_make(grid, params, tokenizer, examples, rows):
    """After and words are what an edit with these parameters gives."""
    grid(7, params)
    emb = params["mllm"]["model"]["embed_tokens"]["embedding"][tokenizer.img_ids[0] :][:8]
    editor = Editor(presets.test(), {**params, "emb": emb}, tokenizer)
    pairs = [examples.pairs.example(place) for place in range(ROWS)]
    edits = editor.edit_many(
        [Image.fromarray(pair.source) for pair in pairs], [pair.instruction for pair in pairs], seeds=range(ROWS)
    )
    for ((_, after, _), caption), wanted in zip(rows[0], edits, strict=True):
        close = np.abs(np.asarray(after, np.int16) - np.asarray(wanted.image, np.int16)) <= 1
        assert close.mean() > 0.99
        assert caption.endswith(f"\n{wanted.expressive}")


def test_it_shows_the_examples(grid, params, examples, rows):
    picture = grid(7, params)
    assert isinstance(picture, Image.Image) and picture.height > ROWS * 100
    (shown,) = rows
    assert len(shown) == ROWS
    for place, ((before, after, target), caption) in enumerate(shown):
        pair = examples.pairs.example(place)
        np.testing.assert_array_equal(np.asarray(before), pair.source)
        np.testing.assert_array_equal(np.asarray(target), pair.target)
        assert after.size == before.size and caption.startswith(f"step 7: \u201c{pair.instruction}\u201d\n")


def test_it_follows_the_parameters_and_compiles_once(grid, params, rows, caplog):
    grid(1, params)
    changed = {**params, "unet": jax.tree.map(lambda x: 1.1 * x, params["unet"])}
    with jax.log_compiles():
        grid(2, changed)
        grid(3, params)
        assert not [line for line in caplog.messages if line.startswith("Compiling")]
        jax.jit(lambda x: x + 1)(1.0)
    assert [line for line in caplog.messages if line.startswith("Compiling")]
    afters = [[np.asarray(row[0][1]) for row in sheet] for sheet in rows]
    assert not np.array_equal(afters[0], afters[1]) and np.array_equal(afters[0], afters[2])


def test_what_is_drawn_on_a_mesh_lies_on_all_of_it():
    """So that each of several processes, whose devices hold parts of the parameters, can read it."""
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    parts = jax.device_put({"w": np.ones((4, 4))}, NamedSharding(mesh, PartitionSpec("fsdp")))
    assert module._everywhere(parts) == NamedSharding(mesh, PartitionSpec())
    assert module._everywhere({"w": jax.numpy.ones(3)}) is None and module._everywhere({"w": np.ones(3)}) is None


def test_held_out_photos(photos, tmp_path, monkeypatch):
    found = {"heldout": dict(enumerate(photos))}
    monkeypatch.setattr(module, "load_photos", lambda folder, split: found[split])
    pairs = held_out_pairs(tmp_path, 1, SIZE).pairs
    assert pairs.split == "heldout" and pairs.size == SIZE and len(pairs.photos) == 2
    found["heldout"] = {}
    with pytest.raises(ValueError, match="no photo was held out.*grid_every=0"):
        held_out_pairs(tmp_path, 1, SIZE)


@pytest.mark.parametrize("splits, wanted", [(("train", "test", "validation"), "validation"), (("train",), None)])
def test_held_out_split_of_a_data_set(monkeypatch, splits, wanted):
    asked = []
    monkeypatch.setattr(module, "contents", lambda data: SimpleNamespace(splits=dict.fromkeys(splits, 1)))
    few = Examples("few", "any", [b""])
    monkeypatch.setattr(module, "load_records", lambda data, split: asked.append(split) or few)
    held_out_examples("data", SIZE)
    assert asked == [wanted]
