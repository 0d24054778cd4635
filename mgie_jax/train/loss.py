"""The joint loss, L = L_ins + 0.5 L_edit (paper, eq. 4), and its first half alone for the MLLM stage."""

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from mgie_jax.diffusion.schedule import add_noise, make_schedule, training_target
from mgie_jax.models.mgie import MGIE, img_embeddings, img_states
from mgie_jax.text.prompt import IGNORE
from mgie_jax.train.state import merge_params
from mgie_jax.types import HostOrDevice


@struct.dataclass
class TextBatch:
    """What the MLLM trains on. `labels[i]` is the token at position i where it counts, -100 elsewhere.

    `clip_pixels` are CLIP-normalised photos.
    """

    ids: Int[HostOrDevice, "b l"]
    mask: Bool[HostOrDevice, "b l"]
    labels: Int[HostOrDevice, "b l"]
    clip_pixels: Float[HostOrDevice, "b s s 3"]


@struct.dataclass
class EditPairBatch:
    """What the joint step trains on; `source` and `target` in [-1, 1]."""

    text: TextBatch
    source: Float[HostOrDevice, "b h w 3"]
    target: Float[HostOrDevice, "b h w 3"]


def instruction_loss(logits: Float[Array, "b l v"], labels: Int[Array, "b l"]) -> Float[Array, ""]:
    """L_ins: cross-entropy of each labelled token given those before it, averaged over the batch's labels."""
    labels = labels[:, 1:]
    counted = labels != IGNORE
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], jnp.where(counted, labels, 0))
    return jnp.where(counted, losses, 0.0).sum() / jnp.maximum(counted.sum(), 1)


def instruction_accuracy(logits: Float[Array, "b l v"], labels: Int[Array, "b l"]) -> Float[Array, ""]:
    """Share of labelled tokens that are the likeliest."""
    labels = labels[:, 1:]
    counted = labels != IGNORE
    return ((logits[:, :-1].argmax(-1) == labels) & counted).sum() / jnp.maximum(counted.sum(), 1)


def drop_conditions(
    u: Float[Array, " b"],
    guidance: Float[Array, "b q d"],
    null_guidance: Float[Array, "1 q d"],
    image_latents: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b q d"], Float[Array, "b h w c"]]:
    """Condition dropout by one uniform draw per example: 5 % lose the text, 5 % both, 5 % the image."""
    guidance = jnp.where((u < 0.10)[:, None, None], null_guidance, guidance)
    dropped = ((u >= 0.05) & (u < 0.15))[:, None, None, None]
    return guidance, jnp.where(dropped, 0.0, image_latents)


def make_instruction_loss(model: MGIE):
    """The loss of the first stage of a small model: L_ins alone, on a `TextBatch`."""

    def loss(trainable: PyTree, frozen: PyTree, batch: TextBatch, key: Key[Array, ""]) -> tuple[Array, dict]:
        params = {"params": merge_params(trainable, frozen)["mllm"]}
        hidden = model.mllm.apply(params, batch.ids, batch.mask, batch.clip_pixels)
        logits = model.mllm.apply(params, hidden, method="logits")
        value = instruction_loss(logits, batch.labels)
        accuracy = instruction_accuracy(logits, batch.labels)
        return value, {"loss": value, "L_ins": value, "token_accuracy": accuracy}

    return loss


def make_joint_loss(
    model: MGIE, img0_id: int, edit_weight: float = 0.5, noise_draws: int = 1, timestep_power: float = 1.0
):
    """The joint loss on an `EditPairBatch`.

    Timesteps are drawn with a density that rises as t^(timestep_power - 1): 1 is the paper's uniform draw; above it the
    noisy steps, where the guidance decides what the picture becomes, are trained more than those that refine it.

    With `noise_draws` above 1 (the paper has 1), L_edit is averaged over that many times, noises and dropouts of every
    example: the same expected gradient, less noisy, and cheaper than as many examples where the MLLM costs most.
    """
    schedule = make_schedule(model.config.schedule)
    scale = model.config.vae.scaling_factor

    def loss(trainable: PyTree, frozen: PyTree, batch: EditPairBatch, key: Key[Array, ""]) -> tuple[Array, dict]:
        params = merge_params(trainable, frozen)
        posterior_key, noise_key, time_key, drop_key = jax.random.split(key, 4)
        rows = batch.source.shape[0]

        # MLLM -> L_ins, and the states at the visual tokens.
        text = batch.text
        mllm = {"params": params["mllm"]}
        hidden = model.mllm.apply(mllm, text.ids, text.mask, text.clip_pixels)
        logits = model.mllm.apply(mllm, hidden, method="logits")
        l_ins = instruction_loss(logits, text.labels)
        found = text.ids == img0_id
        length = text.ids.shape[1]
        img0 = jnp.where(found.any(-1), found.argmax(-1), length)
        states = img_states(hidden, img0, text.mask.sum(-1))

        # Edit head -> guidance, and the guidance of "no instruction".
        emb = img_embeddings(params["mllm"], img0_id)
        guide = lambda states: model.edit_head.apply({"params": params["edit_head"]}, states + emb)  # noqa: E731
        guidance = guide(states)
        null_guidance = guide(jnp.zeros_like(states[:1]))

        # VAE -> clean target latents (a sample, scaled) and the photo's latents (the mode, unscaled).
        both = jnp.concatenate([batch.source, batch.target])
        posterior = model.vae.apply({"params": params["vae"]}, both, method="encode")
        image_latents = posterior.mode()[:rows]
        noise = jax.random.normal(posterior_key, posterior.mean.shape)
        latents = posterior.sample(noise)[rows:] * scale

        # UNet -> L_edit.
        rows *= noise_draws
        latents, image_latents, guidance = (
            jnp.repeat(x, noise_draws, axis=0) for x in (latents, image_latents, guidance)
        )
        noise = jax.random.normal(noise_key, latents.shape)
        share = jax.random.uniform(time_key, (rows,)) ** (1.0 / timestep_power)
        t = (share * model.config.schedule.num_train_timesteps).astype(jnp.int32)
        u = jax.random.uniform(drop_key, (rows,))
        context, image_latents = drop_conditions(u, guidance, null_guidance, image_latents)
        sample = jnp.concatenate([add_noise(schedule, latents, noise, t), image_latents], axis=-1)
        output = model.unet.apply({"params": params["unet"]}, sample, t, context)
        target = training_target(schedule, latents, noise, t)
        l_edit = jnp.square(output.astype(jnp.float32) - target).mean()

        total = l_ins + edit_weight * l_edit
        accuracy = instruction_accuracy(logits, text.labels)
        return total, {"loss": total, "L_ins": l_ins, "L_edit": l_edit, "token_accuracy": accuracy}

    return loss
