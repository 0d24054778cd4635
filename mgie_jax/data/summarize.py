"""Long answers of an MLLM to short expressive instructions: T5 with beam search, as the data are prepared."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from mgie_jax.models.t5 import T5ForConditionalGeneration
from mgie_jax.text.beam import Hypothesis, beam_search
from mgie_jax.text.decode import Step


def summarize(
    model: T5ForConditionalGeneration,
    params: PyTree,
    ids: Int[Array, "b s"],
    mask: Bool[Array, "b s"],
    *,
    num_beams: int = 5,
    min_length: int | Int[Array, ""] = 5,
    max_length: int = 64,
    no_repeat_ngram: int = 3,
    length_penalty: float | Float[Array, ""] = 1.0,
    early_stopping: bool = False,
    start_id: int = 0,
    eos_id: int = 1,
) -> Hypothesis:
    """What the T5 whose parameters are `params` answers to each text, the start token left out.

    `mask` is False on the padding of `ids`, at either end. `min_length` and `max_length` count the start token, as in
    transformers' `generate`, of which the tokens are; the other options are `beam_search`'s. The padding token is the
    start token, as in T5. The defaults are those with which the reference implementation prepares its instructions.
    Meant to be compiled; `min_length` and `length_penalty` may be arguments of the program, the rest are constants.
    """
    variables, rows = {"params": params}, ids.shape[0]
    encoded = model.apply(variables, ids, mask, method="encode")
    start = jnp.full((rows, 1), start_id, ids.dtype)

    def read(tokens, cache):
        hidden, cache = model.apply(variables, tokens, cache, method="decode")
        return Step(model.apply(variables, hidden[:, -1], method="logits"), hidden[:, -1]), cache

    cache = model.apply(variables, encoded, mask, max_length, method="start")
    first, cache = read(start, cache)

    # What was encoded is there once for all beams of a text: only the decoder's own keys and values travel with them.
    def step(own, tokens):
        said, beams = read(tokens[:, None], cache.replace(own=own))
        return said, beams.own

    return beam_search(
        step, lambda own, rows: own.take(rows), first, cache.own, start, jnp.ones(rows, ids.dtype),
        num_beams=num_beams, max_new_tokens=max_length - 1, min_new_tokens=min_length - 1, eos_id=eos_id,
        pad_id=start_id, no_repeat_ngram=no_repeat_ngram, length_penalty=length_penalty, early_stopping=early_stopping,
    )  # fmt: skip
