"""Compiled programs on disk: found again without tracing, never those of another program, never an error."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mgie_jax
from mgie_jax import kept
from mgie_jax.executables import Store, described, environment, settings, signature
from mgie_jax.kept import Files, digest
from mgie_jax.models import presets
from mgie_jax.models.mgie import MGIE

ROOT = Path(mgie_jax.__file__).parents[1]
X = np.arange(12, dtype=np.float32).reshape(3, 4)


class Traced:
    """A jitted function that counts how often it is traced."""

    def __init__(self):
        self.times = 0
        self.jitted = jax.jit(self.multiply, static_argnames=("model", "by"))

    def multiply(self, model, tree, *, by):
        self.times += 1
        return {"times": tree["x"] * by, "keys": jax.random.split(jax.random.wrap_key_data(tree["seed"]), 2)}

    def __call__(self, folder, x=X, by=2, model=1):
        arguments = ({"x": x, "seed": np.zeros(2, np.uint32)},)
        shapes = jax.tree.map(described, arguments)
        store = Store(folder, jax.devices()[:1])
        compiled, found = store.program(self.jitted, (model,), shapes, {"by": by}, signature(shapes))
        return compiled(*arguments), found


@pytest.fixture
def traced():
    return Traced()


def test_a_program_is_traced_once_and_then_found(tmp_path, traced):
    first, was_there = traced(tmp_path)
    again, is_there = traced(tmp_path)
    assert (was_there, is_there, traced.times) == (False, True, 1)
    np.testing.assert_array_equal(first["times"], X * 2)
    np.testing.assert_array_equal(again["times"], first["times"])
    assert again["keys"].dtype == first["keys"].dtype and (again["keys"] == first["keys"]).all()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "other",
    [{"x": X.T}, {"x": X.astype(np.int32)}, {"x": X.astype(jnp.bfloat16)}, {"by": 3}, {"model": 2}],
)
def test_another_program_has_another_name(tmp_path, traced, other):
    traced(tmp_path)
    result, found = traced(tmp_path, **other)
    assert not found and traced.times == 2 and len(list(tmp_path.iterdir())) == 2
    assert result["times"].dtype == other.get("x", X).dtype and result["times"].shape == other.get("x", X).shape


def test_models_differ_by_their_sizes_and_dtypes():
    tiny = presets.test()
    models = [MGIE(tiny), MGIE(tiny, jnp.bfloat16), MGIE(tiny, scan_layers=False), MGIE(presets.default())]
    assert len(set(map(repr, models))) == len(models) and not any(" at 0x" in repr(model) for model in models)


@pytest.mark.parametrize("name, value", [("XLA_FLAGS", "--xla_cpu_enable_fast_math=true"), ("LIBTPU_INIT_ARGS", "--x")])
def test_flags_are_part_of_the_name(monkeypatch, name, value):
    before = environment(jax.devices()[:1])
    monkeypatch.setenv(name, value)
    assert environment(jax.devices()[:1]) != before
    monkeypatch.undo()
    assert environment(jax.devices()[:1]) == before


def test_settings_of_jax_are_part_of_the_name(tmp_path, traced):
    traced(tmp_path)
    before = settings()
    with jax.default_matmul_precision("highest"):  # of this thread and block
        assert settings() != before and not traced(tmp_path)[1]
    assert traced.times == 2 and traced(tmp_path)[1]
    cache = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))  # decides nothing of a program
    try:
        assert settings() == before
    finally:
        jax.config.update("jax_compilation_cache_dir", cache)


def test_sources_are_part_of_the_name(tmp_path, monkeypatch):
    package = tmp_path / "package"
    for name in ("models/unet.py", "edit.py", "kept.py", "cli/edit.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("x = 1\n")
    monkeypatch.setattr(kept, "__file__", str(package / "kept.py"))
    monkeypatch.setattr(kept, "SOURCES", ("models", "edit.py", "kept.py"))
    before = kept.version.__wrapped__()
    (package / "cli/edit.py").write_text("x = 2\n")
    assert kept.version.__wrapped__() == before
    (package / "models/unet.py").write_text("x = 2\n")
    assert kept.version.__wrapped__() != before


def test_sources_are_all_that_programs_come_from():
    """Whatever module of this package is in memory once the programs are, its file is one of `kept.SOURCES`."""
    code = """
import sys, mgie_jax.programs
files = [module.__file__ for name, module in sys.modules.items() if name.startswith("mgie_jax.")]
print(*filter(None, files), sep="\\n")  # packages without __init__.py have none
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found = {Path(line).relative_to(ROOT / "mgie_jax").parts[0] for line in done.stdout.splitlines()}
    assert "models" in found and found <= set(kept.SOURCES)


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty", "folder"])
def test_a_damaged_file_is_made_anew(tmp_path, traced, damage):
    traced(tmp_path)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "foreign":  # whole, but nothing that a runtime can load
        Files(tmp_path).write(path.name, (b"no executable", {"times": 0, "keys": 1}))
    else:
        flipped = data[:900] + bytes([data[900] ^ 1]) + data[901:]
        path.write_bytes({"cut": data[:-1], "flipped": flipped, "empty": b""}[damage])
    result, found = traced(tmp_path)
    assert not found
    np.testing.assert_array_equal(result["times"], X * 2)
    if damage != "folder":
        assert traced(tmp_path)[1] and [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path, traced):
    (tmp_path / "file").write_text("")
    result, found = traced(tmp_path / "file" / "programs")
    assert not found
    np.testing.assert_array_equal(result["times"], X * 2)


def test_what_cannot_be_told_apart_is_refused(tmp_path, traced):
    with pytest.raises(ValueError, match="does not tell"):
        traced(tmp_path, model=object())


def test_a_program_that_jax_has_in_its_cache_is_compiled_again(tmp_path):
    """What comes out of JAX's cache cannot be serialised on a CPU: written again, it lacks functions."""
    code = f"""
import jax, numpy as np
jax.config.update("jax_compilation_cache_dir", {str(tmp_path / "xla")!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
from pathlib import Path
from mgie_jax.executables import Store, described, signature
x = np.ones((64, 64), np.float32)
f = jax.jit(lambda x: jax.nn.softmax(jax.numpy.tanh(x @ x) + 1))
want = np.asarray(f(x))
jax.clear_caches()
assert any(Path({str(tmp_path / "xla")!r}).iterdir())
for there in (False, True):
    shapes = (described(x),)
    store = Store(Path({str(tmp_path / "programs")!r}), jax.devices())
    made, found = store.program(f, (), shapes, {{}}, signature(shapes))
    assert found == there and jax.config.jax_enable_compilation_cache
    np.testing.assert_array_equal(made(x), want)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=True)


def test_files_that_nobody_has_used_go(tmp_path):
    files = Files(tmp_path)
    files.write("old", 1)
    files.write("used", 2)
    long_ago = time.time() - 24 * 3600 * (kept.UNUSED_DAYS + 1)
    for name in ("old", "used"):
        os.utime(tmp_path / name, (long_ago, long_ago))
    assert files.read("used") == 2
    files.write("new", 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "used"]


def test_digests_keep_parts_apart():
    assert digest("a", "bc") != digest("ab", "c") != digest("abc")
