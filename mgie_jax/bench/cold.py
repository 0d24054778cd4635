"""The first edit of a process: with nothing in the compilation cache, and with all programs in it.

    python -m mgie_jax.bench.cold REQUEST

is what a user's process does: it imports, reads the model and the photo, edits and saves; and then it edits again.
REQUEST is JSON: "source" (as `inputs.as_source` takes it), "dtype", "photo" and "output" (files). The cache is where
the environment says.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import monitoring

from mgie_jax.bench.host import PHOTO
from mgie_jax.bench.inputs import INSTRUCTION, Source, as_source, photo
from mgie_jax.compilation import enable_compilation_cache
from mgie_jax.editor import Editor
from mgie_jax.loading import load
from mgie_jax.photo import open_photo, save_atomic
from mgie_jax.weights.model_config import load_config

COLD = ("compile", "cold", "warm", "first", "again")
COMPILING = (
    "/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)  # fmt: skip


class ColdFailed(RuntimeError):
    """The process that should edit a photo has ended otherwise."""


def first_edits(
    source: Source, dtype: str, rounds: int, progress: Callable[[int, str], None] = lambda done, name: None
) -> dict[str, list[float]]:
    """Seconds by stage of `COLD`: one process with an empty cache, then `rounds` with the cache that it has left.

    "cold" and "warm" are from a process' start to its picture, "compile" what of the cold one tracing and compiling
    took. "first" and "again" are two edits of a process that has found its programs in the cache.

    Raises:
        ColdFailed: the process failed; the message has its last words.
    """
    with tempfile.TemporaryDirectory(prefix="mgie-bench-") as folder:
        save_atomic(photo(PHOTO), Path(folder, "photo.jpg"))
        request = {"source": source.request, "dtype": dtype, "photo": f"{folder}/photo.jpg",
                   "output": f"{folder}/edited.png"}  # fmt: skip
        # As a user who has set up nothing: programs are kept in the folder of XDG_CACHE_HOME.
        mine = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
        mine.pop("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", None)
        environment = mine | {"XDG_CACHE_HOME": folder}

        def edit() -> dict[str, float]:
            begun = time.time()
            done = subprocess.run(
                [sys.executable, "-m", __name__, json.dumps(request)], env=environment, text=True, capture_output=True
            )
            if done.returncode:
                words = done.stderr.strip().splitlines()
                raise ColdFailed(f"the first edit of a new process failed: {words[-1] if words else done.returncode}")
            told = json.loads(done.stdout.splitlines()[-1])
            return told | {"process": told["saved"] - begun}

        progress(0, "first edit, nothing cached")
        cold, warm = edit(), []
        for done in range(rounds):
            progress(1 + done, "first edit, programs cached")
            warm.append(edit())
    return {
        "compile": [cold["compile"]], "cold": [cold["process"]], "warm": [one["process"] for one in warm],
        "first": [one["first"] for one in warm], "again": [one["again"] for one in warm],
    }  # fmt: skip


def main(request: dict) -> None:
    """Edits one photo, twice, and prints in JSON what took how long, and when the first picture was saved."""
    compiling = 0.0

    def listen(event: str, seconds: float, **_: object) -> None:
        nonlocal compiling
        compiling += seconds if event in COMPILING else 0.0

    def edit() -> float:
        start = time.perf_counter()
        save_atomic(editor.edit(request["photo"], INSTRUCTION).image, request["output"])
        return time.perf_counter() - start

    monitoring.register_event_duration_secs_listener(listen)
    enable_compilation_cache()
    source, dtype = as_source(request["source"]), jnp.dtype(request["dtype"])
    if source.folder and load_config(source.folder) == source.sizes:
        editor = load(source.folder, dtype=dtype.name, size=open_photo(request["photo"]).size)
    else:
        editor = Editor(source.sizes, source.params(dtype, place=jax.device_put), source.tokenizer(), dtype=dtype)
    first, saved = edit(), time.time()
    print(json.dumps({"compile": compiling, "saved": saved, "first": first, "again": edit()}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
