"""What compiling leaves behind for the next process, on by default: an edit compiles once per machine, not per run.

In the user's cache folder are JAX's persistent compilation cache, `xla/`, and beside it, `programs/`, the programs of
edits whole (`executables`) and the shapes of models.
"""

from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

from mgie_jax.executables import Store
from mgie_jax.kept import Files, digest, version
from mgie_jax.paths import cache_home


def cache_dir() -> Path:
    """The user's cache folder for JAX's compilation cache: $XDG_CACHE_HOME/mgie-jax/xla, or below ~/.cache."""
    return cache_home() / "xla"


def programs_dir() -> Path:
    """The one for whole programs."""
    return cache_home() / "programs"


def enable_compilation_cache() -> None:
    """Keeps compiled programs in `cache_dir()`, unless the user has set up a cache (JAX_COMPILATION_CACHE_DIR)."""
    if jax.config.jax_compilation_cache_dir:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_dir()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def is_ours() -> bool:
    """Whether programs are kept in our folders; no where the user keeps them elsewhere, which is left to JAX alone."""
    return jax.config.jax_compilation_cache_dir == str(cache_dir()) and jax.config.jax_enable_compilation_cache


def program_store(mesh: Mesh | None = None) -> Store | None:
    """Where an edit's programs are kept whole, for the devices of `mesh` or for the default one.

    None where that is not ours to do (`is_ours`), and where several processes run one program.
    """
    if not is_ours() or jax.process_count() > 1 or jax.config.jax_default_device is not None:
        return None
    return Store(programs_dir(), jax.devices()[:1] if mesh is None else list(mesh.devices.flat))


def kept_shapes(told: str, make: Callable[[], dict]) -> dict:
    """`make()`, a tree of `jax.ShapeDtypeStruct` that takes seconds to trace; `told` says all that decides it."""
    if not is_ours():
        return make()
    files, name = Files(programs_dir()), f"shapes-{digest(version(), told)[:40]}"
    found = files.read(name)
    if found is None:
        found = make()
        files.write(name, found)
    return found
