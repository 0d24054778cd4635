"""The stages of an edit, each as a program of its own, with the work that it is.

They are the networks' own methods and the programs that `Editor` runs, all on the same random inputs (`Case.inputs`),
which a peer is given as well.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import PyTree

from mgie_jax import edit, programs
from mgie_jax.bench.case import Case
from mgie_jax.diffusion import sample
from mgie_jax.models.llama import init_cache, text_positions
from mgie_jax.plan import count

NEVER = -1  # the id of no token: an answer that ends with it has all its tokens
TITLES = {
    "open": "photo opened, fitted, its pixels and tokens made",
    "vision": "vision tower and projector",
    "prefill": "LLM, reading the prompt",
    "decode": "LLM, a token written",
    "head": "edit head",
    "encode": "VAE, encoding",
    "unet": "UNet, three branches",
    "step": "denoising step: UNet, guidance and sampler",
    "sampler": "sampler of a step, without the network",
    "vae": "VAE, decoding to 8-bit pixels",
    "save": "PNG encoded",
    "compile": "traced and compiled, in a new process",
    "cold": "new process to first picture, nothing cached",
    "warm": "new process to first picture, programs cached",
    "first": "first edit of such a process, the model loaded",
    "again": "an edit after it",
}
"""All stages in the order of an edit, and what they are."""
DEVICE = ("vision", "prefill", "decode", "head", "encode", "unet", "step", "sampler", "vae")


@dataclass(frozen=True)
class Work:
    """Something to be timed.

    Attributes:
        name: such as "unet".
        run: does it and returns when it is done.
        flops: of a unit: those of products and convolutions in its jaxpr (`plan.count`); None where nobody counts them.
        bytes: of a unit, what must move at least: each argument that the program reads, once, and what it returns.
        units: how many a run is: steps, tokens.
        minus: what a run does besides, to be taken off its time.
        outputs: computes it for comparison; None where there is nothing to compare.
    """

    name: str
    run: Callable[[], object]
    flops: float | None = None
    bytes: float | None = None
    units: int = 1
    minus: Callable[[], object] | None = None
    outputs: Callable[[], dict[str, np.ndarray]] | None = None


def stage(case: Case, name: str) -> Work:
    """One of the stages `DEVICE`."""
    return STAGES[name](case)


def work(
    name: str, jitted: Callable, *args: Any, units: int = 1, outputs: Callable[[Any], PyTree] = lambda y: y,
    **static: Any,
) -> Work:  # fmt: skip
    """The work of a jitted function without a loop that ends by its data, on its arguments.

    Args:
        units: how many a run is.
        outputs: what is compared, of what it returns.
    """
    flops, nbytes = counted(jitted, *args, **static)
    return Work(
        name, lambda: jax.block_until_ready(jitted(*args, **static)), flops / units, nbytes / units, units,
        outputs=lambda: _host(outputs(jitted(*args, **static))),
    )  # fmt: skip


def counted(jitted: Callable, *args: Any, **static: Any) -> tuple[float, float]:
    """(FLOPs, bytes) of a jitted function, as `Work` has them; nothing is compiled."""
    jaxpr = jitted.trace(*args, **static).jaxpr.jaxpr
    _, read = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=False)  # as jit finds out what to leave out
    used = [var for var, needed in zip(jaxpr.invars, read, strict=True) if needed]
    nbytes = sum(var.aval.size * var.aval.dtype.itemsize for var in (*used, *jaxpr.outvars))
    return float(count.flops(jaxpr)), float(nbytes)


def _vision(case: Case) -> Work:
    def see(params: dict, pixels: jax.Array) -> jax.Array:
        return case.model.mllm.apply({"params": params}, pixels, method="encode_image")

    return work("vision", jax.jit(see), case.params["mllm"], case.of("clip_pixels"))


def _prefill(case: Case) -> Work:
    """Into a cache with room for an answer, as an edit does; without padding, so that a peer can do the same."""
    mllm, embeds = case.model.mllm, case.of("embeds")
    slots = embeds.shape[1] + case.model.config.sampling.max_new_tokens

    def read(params: dict, embeds: jax.Array) -> tuple:
        mask = jnp.ones(embeds.shape[:2], bool)
        cache = init_cache(case.model.config.mllm.llm, case.rows, slots, case.model.dtype)

        def through(mllm: Any) -> tuple:
            hidden, filled = mllm.model(embeds, text_positions(mask), mask, cache)
            return mllm.logits(hidden[:, -1]), filled

        return mllm.apply({"params": params}, method=through)

    return work("prefill", jax.jit(read), case.params["mllm"], embeds, outputs=lambda said: {"logits": said[0]})


def _decode(case: Case) -> Work:
    """A whole answer of `Case.tokens`, less one of a single token; what it counts is a decoding step alone.

    Token by token: a draft of the [IMG] tokens, which an edit reads at once, is not waited for.
    """
    mllm, sizes, tokens = case.model.mllm, case.model.config, case.tokens
    special = edit.Special(img0=NEVER, eos=NEVER, pad=case.editor.tokenizer.pad_id)
    width = case.batch.ids.shape[1]

    def answer(tokens: int) -> tuple:
        sampling = replace(sizes.sampling, max_new_tokens=tokens)
        model = replace(case.model, config=replace(sizes, sampling=sampling))
        return programs.write(model, case.params, case.batch, special=special)

    def token(params: dict, token: jax.Array, cache: Any) -> tuple:
        one = jnp.ones((case.rows, 1), bool)
        hidden, cache = mllm.apply({"params": params}, token[:, None], one, cache, method="extend")
        return mllm.apply({"params": params}, hidden, method="logits"), cache

    cache = init_cache(sizes.mllm.llm, case.rows, width + sizes.sampling.max_new_tokens, case.model.dtype)
    one = {name: x for name, x in case.params["mllm"].items() if name != "vision_tower"}
    flops, nbytes = counted(jax.jit(token, donate_argnums=2), one, case.batch.ids[:, 0], cache)
    # One row of the word embedding is read, and one slot of the cache written, for each row of the batch.
    table = case.params["mllm"]["model"]["embed_tokens"]["embedding"]
    nbytes -= table.nbytes + cache.keys.nbytes + cache.values.nbytes
    return Work(
        "decode", lambda: jax.block_until_ready(answer(tokens)), flops, nbytes, tokens - 1,
        lambda: jax.block_until_ready(answer(1)), lambda: _host({"tokens": answer(tokens)[0].tokens}),
    )  # fmt: skip


def _head(case: Case) -> Work:
    def guide(params: dict, states: jax.Array) -> jax.Array:
        return case.model.edit_head.apply({"params": params}, states)

    return work("head", jax.jit(guide), case.params["edit_head"], case.of("states"))


def _encode(case: Case) -> Work:
    def encode(params: dict, pixels: jax.Array) -> jax.Array:
        return case.model.vae.apply({"params": params}, pixels, method="encode").mode()

    return work("encode", jax.jit(encode), case.params["vae"], case.of("pixels"))


def _unet(case: Case) -> Work:
    def predict(params: dict, sample: jax.Array, timesteps: jax.Array, context: jax.Array) -> jax.Array:
        return case.model.unet.apply({"params": params}, sample, timesteps, context)

    timesteps = jnp.full(3 * case.rows, case.sampler.table.timestep[0])
    return work("unet", jax.jit(predict), case.params["unet"], case.of("sample"), timesteps, case.of("context"))


def _step(case: Case) -> Work:
    """All steps of an edit as one run of `programs.denoise`; weights are read again in each."""
    x, plan = case.inputs, case.sampler
    steps = len(plan.table.timestep)
    conditions = edit.Conditions(case.of("guidance"), case.of("null_guidance"), case.of("image_latents"))
    state = sample.init(plan, jnp.asarray(x["noise"]))
    args = (case.model, case.params, conditions, case.batch.scales, plan.table, state, case.keys)
    made = work("step", programs.denoise, *args, units=steps, stochastic=plan.stochastic, outputs=lambda end: end.x)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(case.params["unet"]))
    return replace(made, bytes=made.bytes + weights * (steps - 1) / steps)


def _sampler(case: Case) -> Work:
    steps = len(case.sampler.table.timestep)

    def alone(state: sample.State, keys: jax.Array) -> sample.State:
        noise_fn = sample.noise_from_keys(keys, state.x.shape)[1] if case.sampler.stochastic else None
        return sample.run(lambda x, time: x, case.sampler.table, state, noise_fn)

    state = sample.init(case.sampler, jnp.asarray(case.inputs["noise"]))
    return work("sampler", jax.jit(alone), state, case.keys, units=steps, outputs=lambda end: end.x)


def _vae(case: Case) -> Work:
    latents = jnp.asarray(case.inputs["latents"])
    return work("vae", programs.decode, case.model, case.params, latents, outputs=lambda pixels: {"pixels": pixels})


STAGES = {
    "vision": _vision, "prefill": _prefill, "decode": _decode, "head": _head, "encode": _encode, "unet": _unet,
    "step": _step, "sampler": _sampler, "vae": _vae,
}  # fmt: skip


def _host(tree: PyTree) -> dict[str, np.ndarray]:
    """Arrays by name, one alone as "output"; floats as float32."""
    named = tree if isinstance(tree, dict) else {"output": tree}
    return {name: np.asarray(x, np.float32 if jnp.issubdtype(x.dtype, jnp.floating) else None)
            for name, x in named.items()}  # fmt: skip
