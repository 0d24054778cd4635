"""The sampling story: photo + instruction -> write -> guide -> denoise -> decode -> edited photo.

Pure functions of (params, batch, keys). `edit` is all of them as one XLA program; the stages are public, so that
a caller can show progress between denoising steps, or keep the visual states and draw again without the MLLM.
"""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt8

from mgie_jax.diffusion.sample import Sampler, Scales, State, Table, branches, guided, init, noise_from_keys, run
from mgie_jax.models import ahead
from mgie_jax.models.llama import init_cache
from mgie_jax.models.mgie import MGIE, NUM_IMG_TOKENS, img_states
from mgie_jax.text.decode import Decoded, Draft, Step, greedy, spare
from mgie_jax.types import HostOrDevice, KVCache


@struct.dataclass
class EditBatch:
    """Photos and what to do with them.

    `ids` are right-padded prompts (`text.prompt`), `mask` is True on real tokens. With an expressive instruction
    supplied, `ids` hold it and the `[IMG]` tokens as well. `clip_pixels` are CLIP-normalised, `pixels` in [-1, 1],
    with sides that divide by `config.photo_multiple`. `write` and `read` need neither these nor what follows them.
    """

    ids: Int[HostOrDevice, "b l"]
    mask: Bool[HostOrDevice, "b l"]
    clip_pixels: Float[HostOrDevice, "b s s 3"]
    pixels: Float[HostOrDevice, "b h w 3"] | None = None
    scales: Scales | None = None


@struct.dataclass
class Special:
    """Ids of the tokens that steer an edit; constants of a compiled program."""

    img0: int = struct.field(pytree_node=False)
    eos: int = struct.field(pytree_node=False)
    pad: int = struct.field(pytree_node=False)


@struct.dataclass
class Conditions:
    """What the UNet is shown, and the latents it starts from."""

    guidance: Float[HostOrDevice, "b q d"]
    null_guidance: Float[HostOrDevice, "1 q d"]
    image_latents: Float[HostOrDevice, "b h w c"]


def answer(
    model: MGIE,
    params: PyTree,
    ids: Int[HostOrDevice, "b l"],
    mask: Bool[HostOrDevice, "b l"],
    clip_pixels: Float[HostOrDevice, "b s s 3"],
    *,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int,
    no_repeat_ngram: int = 3,
    draft: tuple[int, ...] = (),
) -> tuple[Float[Array, "b l d"], Decoded]:
    """The states of each prompt and the MLLM's answer to it, greedily; of `params` only "mllm" is needed.

    `draft` are tokens that are likely to come in a run: they are read in one pass (`text.decode.greedy`).
    """
    mllm, variables = model.mllm, {"params": params["mllm"]}
    rows, width = ids.shape
    run = Draft(draft, KVCache.keep) if draft else None
    cache = init_cache(model.config.mllm.llm, rows, width + max_new_tokens + spare(rows, run), model.dtype)
    hidden, cache = mllm.apply(variables, ids, mask, clip_pixels, cache, method="prefill")
    length = mask.sum(-1)
    last = jnp.take_along_axis(hidden, (length - 1)[:, None, None], axis=1)[:, 0]

    def read(hidden: Float[Array, "*b d"]) -> Step:
        return Step(mllm.apply(variables, hidden, method="logits"), hidden)

    def step(cache, tokens, valid):
        hidden, cache = mllm.apply(variables, tokens, valid, cache, method="extend")
        return read(hidden), cache

    return hidden, greedy(
        step, read(last), cache, ids, length,
        max_new_tokens=max_new_tokens, eos_id=eos_id, pad_id=pad_id, no_repeat_ngram=no_repeat_ngram, draft=run,
    )  # fmt: skip


def write(model: MGIE, params: PyTree, batch: EditBatch, special: Special) -> tuple[Decoded, Float[Array, "b 8 d"]]:
    """The MLLM's answer to each prompt, greedily without repeated 3-grams, and its eight visual states."""
    new, length = model.config.sampling.max_new_tokens, batch.mask.sum(-1)
    hidden, said = answer(
        model, params, batch.ids, batch.mask, batch.clip_pixels,
        max_new_tokens=new, eos_id=special.eos, pad_id=special.pad,
        draft=tuple(range(special.img0, special.img0 + NUM_IMG_TOKENS)),
    )  # fmt: skip
    # The prompt's last states stand before the answer's: an answer too short for eight reaches back into them.
    tail = (length - 1)[:, None] - jnp.arange(NUM_IMG_TOKENS, 0, -1)
    states = jnp.concatenate([jnp.take_along_axis(hidden, tail[..., None], axis=1), said.hidden], axis=1)
    found = said.tokens == special.img0
    img0 = jnp.where(found.any(-1), found.argmax(-1), new) + NUM_IMG_TOKENS + 1
    return said, img_states(states, img0, said.length + NUM_IMG_TOKENS)


def read(model: MGIE, params: PyTree, batch: EditBatch, special: Special) -> Float[Array, "b 8 d"]:
    """The visual states of answers that the caller supplies within `batch.ids`."""
    hidden = model.mllm.apply({"params": params["mllm"]}, batch.ids, batch.mask, batch.clip_pixels)
    found = batch.ids == special.img0
    img0 = jnp.where(found.any(-1), found.argmax(-1), batch.ids.shape[1])
    return img_states(hidden, img0, batch.mask.sum(-1))


def guide(model: MGIE, params: PyTree, states: Float[Array, "b 8 d"], pixels: Float[Array, "b h w 3"]) -> Conditions:
    """What conditions the UNet: guidance of the visual states and of none, and the photo's latents, unscaled."""
    head, emb = {"params": params["edit_head"]}, params["emb"].astype(states.dtype)
    posterior = model.vae.apply({"params": params["vae"]}, pixels, method="encode")
    return Conditions(
        guidance=model.edit_head.apply(head, states + emb),
        null_guidance=model.edit_head.apply(head, jnp.zeros_like(states[:1]) + emb),
        image_latents=posterior.mode(),
    )


def start(sampler: Sampler, conditions: Conditions, keys: Key[Array, " b"]) -> State:
    """The latents before the first step: noise, drawn for each row from its own key."""
    return init(sampler, noise_from_keys(keys, conditions.image_latents.shape)[0])


def denoise(
    model: MGIE, params: PyTree, conditions: Conditions, scales: Scales, rows: Table, state: State,
    keys: Key[Array, " b"], stochastic: bool,
) -> State:  # fmt: skip
    """The denoising steps of `rows`, all of a sampler's table or some, under the three-branch guidance of `scales`."""
    config, weights = model.config.unet, params["unet"]
    shown = branches(conditions.guidance, conditions.null_guidance, conditions.image_latents, scales.shown)
    same = ahead.guidance_and_photo(config, weights, *shown, model.dtype)

    def unet(x, time):
        return model.unet.apply({"params": weights, **same, **time}, x)

    predict = guided(unet, scales)
    noise_fn = noise_from_keys(keys, state.x.shape)[1] if stochastic else None
    return run(predict, rows, state, noise_fn, ahead.times(config, weights, rows.timestep, model.dtype))


def decode(model: MGIE, params: PyTree, latents: Float[Array, "b h w c"]) -> UInt8[Array, "b h2 w2 3"]:
    """Photos of scaled latents."""
    scaled = latents / model.config.vae.scaling_factor
    pixels = model.vae.apply({"params": params["vae"]}, scaled, method="decode")
    return jnp.round(jnp.clip(pixels * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)


def edit(
    model: MGIE, params: PyTree, batch: EditBatch, keys: Key[Array, " b"], sampler: Sampler, special: Special
) -> tuple[UInt8[Array, "b h w 3"], Int[Array, "b new"]]:
    """The whole edit, to be compiled as one program: pictures, and the tokens of the answers."""
    said, states = write(model, params, batch, special)
    conditions = guide(model, params, states, batch.pixels)
    state = start(sampler, conditions, keys)
    state = denoise(model, params, conditions, batch.scales, sampler.table, state, keys, sampler.stochastic)
    return decode(model, params, state.x), said.tokens
