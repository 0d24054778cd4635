"""JAX's persistent compilation cache, on by default: an edit compiles once per machine, not once per run."""

from pathlib import Path

import jax

from mgie_jax.paths import cache_home


def cache_dir() -> Path:
    """The user's cache folder for compiled programs: $XDG_CACHE_HOME/mgie-jax/xla, or below ~/.cache."""
    return cache_home() / "xla"


def enable_compilation_cache() -> None:
    """Keeps compiled programs in `cache_dir()`, unless the user has set up a cache (JAX_COMPILATION_CACHE_DIR)."""
    if jax.config.jax_compilation_cache_dir:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_dir()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
