"""Set before anything imports JAX: the CPU, and one compilation cache for all test runs of this user."""

import getpass
import importlib.metadata
import os
import shutil
import subprocess
import sys
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


@pytest.fixture(scope="session")
def fake_gcs():
    """A Google Cloud Storage that every client in this process, and in those it starts, takes for the real one."""
    import fsspec

    from tests.fake_gcs import serve

    with serve() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment().items():
            patch.setenv(name, value)
        fsspec.config.set_conf_env(fsspec.config.conf)  # it looked when it was imported
        yield store


@pytest.fixture
def bucket(fake_gcs, request):
    """An empty bucket: a path to be written below. `fake_gcs.names(bucket.name)` says what is in it."""
    from mgie_jax.paths import to_path

    name = "bucket-" + "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[:50].strip("-")
    fake_gcs.requests.clear()
    yield to_path(f"gs://{name}")
    fake_gcs.refuse = None
    for key in fake_gcs.names(f"{name}/"):
        del fake_gcs.objects[key]


@pytest.fixture(scope="session")
def libtpu():
    """A folder with the TPU compiler, as jax's extra "tpu" asks for it; kept for all test runs of this user.

    It is no requirement of the tests: where libtpu is installed every `import jax` looks for a TPU.
    """
    wanted = next(name for name in importlib.metadata.requires("jax") if name.startswith("libtpu"))
    wanted = wanted.partition(";")[0].strip()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mgie-jax"
    folder = caches / wanted.replace("=", "").replace("*", "x")
    if not folder.is_dir():
        caches.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=".libtpu-", dir=caches))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        if subprocess.run([*pip, "--target", str(new), wanted]).returncode:
            shutil.rmtree(new)
            pytest.skip(f"{wanted}, the TPU compiler, cannot be installed here")
        try:
            new.rename(folder)
        except OSError:  # another run was faster
            shutil.rmtree(new)
    return folder


@pytest.fixture(scope="session")
def tpu_environment(libtpu):
    """The environment of a process in which the TPU compiler can be found."""
    paths = [str(libtpu), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
