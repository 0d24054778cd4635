"""Set before anything imports JAX: the CPU, and one compilation cache for all test runs of this user."""

import getpass
import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"mgie-jax-tests-{getpass.getuser()}")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


@pytest.fixture(scope="session")
def tiny_params():
    """Random parameters of `presets.test()`, of a scale at which every network computes something."""
    import jax
    import numpy as np

    from mgie_jax.models import presets
    from mgie_jax.models.mgie import MGIE

    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(leaf.dtype)
        return 1 + 0.1 * noise if path[-1].key == "scale" else 0.15 * noise

    params = jax.tree_util.tree_map_with_path(draw, MGIE(presets.test()).shapes())
    return params | {"emb": 0.15 * rng.standard_normal((8, 32)).astype(np.float32)}


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory):
    """A saved tokenizer with the vocabulary of `presets.test()`."""
    from mgie_jax.models import presets
    from mgie_jax.text.train_tokenizer import save_tokenizer, train_bpe

    path = tmp_path_factory.mktemp("tokenizer")
    text = "The photo is dark, flat and cool. It becomes much brighter, with light everywhere."
    save_tokenizer(train_bpe([text] * 3, presets.test().mllm.llm.vocab_size), path)
    return path


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory, tiny_params, tiny_tokenizer_dir):
    """A whole model directory of `presets.test()`."""
    from mgie_jax.models import presets
    from mgie_jax.weights.files import save_model_dir

    path = tmp_path_factory.mktemp("models") / "tiny"
    save_model_dir(path, presets.test(), tiny_params, tiny_tokenizer_dir)
    return path
