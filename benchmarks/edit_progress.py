"""What a progress bar costs: denoising in chunks, as `mgie edit` does, beside one program for all steps.

    python benchmarks/edit_progress.py [--rounds 5]

Both run in turn, in one process, on the same photo; prints the medians and their ratio.
"""

import argparse
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import mgie_jax
from mgie_jax import edit
from mgie_jax.diffusion.sample import SAMPLERS
from mgie_jax.editor import CHUNKS
from mgie_jax.photo import fit, open_photo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds

    editor = mgie_jax.load()
    config, sampling = editor.config, editor.config.sampling
    photo = fit(open_photo(Path(mgie_jax.__file__).parent / "assets/photos/coffee.jpg"), sampling.resolution,
                config.photo_multiple)[0]  # fmt: skip
    batch = editor._batch([photo], ["make it darker"], None, sampling.guidance_scale, sampling.image_guidance_scale)
    keys = jax.vmap(jax.random.key)(jnp.zeros(1, jnp.uint32))
    plan = SAMPLERS[sampling.sampler](config.schedule, sampling.steps)
    states = np.asarray(editor.edit(photo, "make it darker").states)[None]
    conditions = jax.jit(edit.guide, static_argnums=0)(editor._model, editor.params, states, batch.pixels)
    whole = jax.jit(edit.denoise, static_argnames=("model", "stochastic"))
    start = edit.start(plan, conditions, keys)

    def at_once():
        rows = plan.table
        jax.block_until_ready(
            whole(editor._model, editor.params, conditions, batch, rows, start, keys, stochastic=plan.stochastic)
        )

    def in_chunks():
        state = start
        chunk = max(1, sampling.steps // CHUNKS)
        for first in range(0, sampling.steps, chunk):
            last = min(first + chunk, sampling.steps)
            state = jax.block_until_ready(editor._run(conditions, batch, plan, first, last, state, keys))

    seconds = {at_once: [], in_chunks: []}
    for round_number in range(rounds + 1):
        for run, laps in seconds.items():
            begun = time.perf_counter()
            run()
            if round_number:  # the first round compiles
                laps.append(time.perf_counter() - begun)
    one, many = (statistics.median(laps) for laps in seconds.values())
    print(f"one program {one:.3f} s, in chunks {many:.3f} s, ratio {many / one:.3f} ({sampling.steps} steps)")


if __name__ == "__main__":
    main()
