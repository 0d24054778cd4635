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

import mgie_jax
from mgie_jax import edit
from mgie_jax.diffusion.sample import SAMPLERS, scales
from mgie_jax.models.mgie import MGIE
from mgie_jax.photo import to_pixels
from mgie_jax.programs import chunks, denoise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds

    editor = mgie_jax.load()
    model, sampling = MGIE(editor.config), editor.config.sampling
    result = editor.edit(Path(mgie_jax.__file__).parent / "assets/photos/coffee.jpg", "make it darker")
    pixels = to_pixels(result.before)[None]
    conditions = jax.jit(edit.guide, static_argnums=0)(model, editor.params, result.states[None], pixels)
    told = scales(1, sampling.guidance_scale, sampling.image_guidance_scale)
    keys = jax.vmap(jax.random.key)(jnp.zeros(1, jnp.uint32))
    plan = SAMPLERS[sampling.sampler](editor.config.schedule, sampling.steps)
    start = edit.start(plan, conditions, keys)

    def denoised(state, first, last):
        given = (conditions, told, plan.table.rows(first, last), state, keys)
        return jax.block_until_ready(denoise(model, editor.params, *given, stochastic=plan.stochastic))

    def at_once():
        denoised(start, 0, sampling.steps)

    def in_chunks():
        state = start
        for first, last in chunks(sampling.steps):
            state = denoised(state, first, last)

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
