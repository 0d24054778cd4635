"""A whole edit, as `Editor.edit_many` makes it from pictures in memory, and what it is in work."""

import numpy as np

from mgie_jax import edit, programs
from mgie_jax.bench import stages
from mgie_jax.bench.case import Case
from mgie_jax.bench.inputs import INSTRUCTION, SEED, photo
from mgie_jax.bench.stages import Work


def photos(case: Case) -> list:
    """As many as the case has rows, of the size that they are edited at."""
    return [photo(case.size, SEED + row) for row in range(case.rows)]


def special(case: Case) -> edit.Special:
    """The tokens that steer an answer."""
    tokenizer = case.editor.tokenizer
    return edit.Special(tokenizer.img_ids[0], tokenizer.eos_id, tokenizer.pad_id)


def tokens(case: Case) -> np.ndarray:
    """(b, new): the answers, to the end of the longest."""
    said = programs.write(case.model, case.params, case.batch, special=special(case))[0]
    return np.asarray(said.tokens)[:, : int(said.length.max())]


def work(case: Case) -> Work:
    """An edit. Its work is that of its stages, as often as each runs: decoding for as many tokens as were written."""
    given, written = photos(case), tokens(case)
    seeds = list(range(case.rows))

    def run() -> list:
        return case.editor.edit_many(given, [INSTRUCTION] * case.rows, seeds=seeds)

    def outputs() -> dict[str, np.ndarray]:
        return {"tokens": written, "pixels": np.stack([np.asarray(result.image) for result in run()])}

    steps = case.model.config.sampling.steps
    often = {"vision": 1, "prefill": 1, "decode": written.shape[1] - 1, "head": 2, "encode": 1, "step": steps, "vae": 1}
    parts = {name: stages.stage(case, name) for name in often}
    return Work(
        "edit", run, sum(often[name] * part.flops for name, part in parts.items()),
        sum(often[name] * part.bytes for name, part in parts.items()), outputs=outputs,
    )  # fmt: skip


def inputs(case: Case) -> dict[str, np.ndarray]:
    """What a peer is given beside `Case.inputs`."""
    return {"photos": np.stack([np.asarray(one) for one in photos(case)])}
