"""The joint loss, L = L_ins + 0.5 L_edit (paper, eq. 4), and its first half alone for the MLLM stage."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from mgie_jax.diffusion.schedule import add_noise, make_schedule, training_target
from mgie_jax.models.mgie import MGIE, img_embeddings, img_states
from mgie_jax.text.prompt import IGNORE
from mgie_jax.train.state import merge_params
from mgie_jax.train.step import SplitLoss
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


@struct.dataclass
class Draws:
    """Everything random in the joint loss of b examples, with n draws each: row i * n + j is example i's j-th.

    `posterior` and `noise` are standard normal: for the VAE's sample of the target, and what the UNet is to find in it.
    `timesteps` are in [0, num_train_timesteps); `uniform`, in [0, 1), decides which conditions are dropped.
    """

    posterior: Float[HostOrDevice, "b h w c"]
    noise: Float[HostOrDevice, "bn h w c"]
    timesteps: Int[HostOrDevice, " bn"]
    uniform: Float[HostOrDevice, " bn"]


class Counts(NamedTuple):
    """What the two means of the joint loss divide by: the labelled tokens, and the examples' draws."""

    labels: Int[Array, ""]
    draws: int | Int[Array, ""]


class Prediction(NamedTuple):
    """What the networks say of a batch; `output` is the UNet's, `target` what it should be.

    `states` are the visual ones and `guidance` theirs, before any dropout.
    """

    logits: Float[Array, "b l v"]
    states: Float[Array, "b 8 d"]
    guidance: Float[Array, "b q d2"]
    null_guidance: Float[Array, "1 q d2"]
    output: Float[Array, "bn h w c"]
    target: Float[Array, "bn h w c"]


def count_labels(labels: Int[Array, "b l"]) -> Int[Array, ""]:
    """What L_ins is an average over; at least 1."""
    return jnp.maximum((labels[:, 1:] != IGNORE).sum(), 1)


def instruction_loss(
    logits: Float[Array, "b l v"], labels: Int[Array, "b l"], count: Int[Array, ""] | None = None
) -> Float[Array, ""]:
    """L_ins: cross-entropy of each labelled token given those before it, averaged over the batch's labels.

    `count` is the number of labels in the whole batch, where these rows are a part of it.
    """
    labels, count = labels[:, 1:], count_labels(labels) if count is None else count
    counted = labels != IGNORE
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], jnp.where(counted, labels, 0))
    return jnp.where(counted, losses, 0.0).sum() / count


def instruction_accuracy(
    logits: Float[Array, "b l v"], labels: Int[Array, "b l"], count: Int[Array, ""] | None = None
) -> Float[Array, ""]:
    """Share of labelled tokens that are the likeliest; `count` as in `instruction_loss`."""
    labels, count = labels[:, 1:], count_labels(labels) if count is None else count
    return ((logits[:, :-1].argmax(-1) == labels) & (labels != IGNORE)).sum() / count


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


def make_instruction_loss(model: MGIE) -> SplitLoss:
    """The loss of the first stage of a small model: L_ins alone, on a `TextBatch`."""

    def value(trainable: PyTree, frozen: PyTree, batch: TextBatch, draws: None, labels: Array) -> tuple[Array, dict]:
        params = {"params": merge_params(trainable, frozen)["mllm"]}
        hidden = model.mllm.apply(params, batch.ids, batch.mask, batch.clip_pixels)
        logits = model.mllm.apply(params, hidden, method="logits")
        loss = instruction_loss(logits, batch.labels, labels)
        accuracy = instruction_accuracy(logits, batch.labels, labels)
        return loss, {"loss": loss, "L_ins": loss, "token_accuracy": accuracy}

    return SplitLoss(draw=lambda key, batch: None, count=lambda batch: count_labels(batch.labels), value=value)


def make_draws(
    key: Key[Array, ""], model: MGIE, batch: EditPairBatch, noise_draws: int = 1, timestep_power: float = 1.0
) -> Draws:
    """The draws of one step; see `make_joint_loss` for the options."""
    posterior_key, noise_key, time_key, drop_key = jax.random.split(key, 4)
    (examples, height, width, _), vae = batch.target.shape, model.config.vae
    latents = (height // vae.downsampling, width // vae.downsampling, vae.latent_channels)
    rows = examples * noise_draws
    # Drawn for sources and targets, of which the targets' half is used: a key means what it has always meant.
    posterior = jax.random.normal(posterior_key, (2, examples, *latents))[1]
    share = jax.random.uniform(time_key, (rows,)) ** (1.0 / timestep_power)
    return Draws(
        posterior=posterior,
        noise=jax.random.normal(noise_key, (rows, *latents)),
        timesteps=(share * model.config.schedule.num_train_timesteps).astype(jnp.int32),
        uniform=jax.random.uniform(drop_key, (rows,)),
    )


def predict(model: MGIE, params: PyTree, batch: EditPairBatch, draws: Draws, img0_id: int) -> Prediction:
    """One pass through all four networks, a pure function: what is random in the loss is in `draws`."""
    # MLLM -> logits, and the states at the visual tokens.
    text, rows = batch.text, batch.source.shape[0]
    mllm = {"params": params["mllm"]}
    hidden = model.mllm.apply(mllm, text.ids, text.mask, text.clip_pixels)
    logits = model.mllm.apply(mllm, hidden, method="logits")
    found = text.ids == img0_id
    img0 = jnp.where(found.any(-1), found.argmax(-1), text.ids.shape[1])
    states = img_states(hidden, img0, text.mask.sum(-1))

    # Edit head -> guidance, and the guidance of "no instruction".
    emb = img_embeddings(params["mllm"], img0_id)
    guide = lambda states: model.edit_head.apply({"params": params["edit_head"]}, states + emb)  # noqa: E731
    guidance = guide(states)
    null_guidance = guide(jnp.zeros_like(states[:1]))

    # VAE -> clean target latents (a sample, scaled) and the photo's latents (the mode, unscaled).
    # An example's two photos stand together: one batch behind the other, half of each would change devices.
    pairs = jnp.stack([batch.source, batch.target], axis=1)
    posterior = model.vae.apply({"params": params["vae"]}, pairs.reshape(-1, *pairs.shape[2:]), method="encode")
    source, target = (jax.tree.map(lambda x, i=i: x[i::2], posterior) for i in range(2))
    latents = target.sample(draws.posterior) * model.config.vae.scaling_factor

    # UNet -> the noise, or v.
    def repeat(x: Array) -> Array:
        return jnp.repeat(x, draws.uniform.shape[0] // rows, axis=0)

    schedule, t = make_schedule(model.config.schedule), draws.timesteps
    latents = repeat(latents)
    context, image_latents = drop_conditions(draws.uniform, repeat(guidance), null_guidance, repeat(source.mode()))
    sample = jnp.concatenate([add_noise(schedule, latents, draws.noise, t), image_latents], axis=-1)
    output = model.unet.apply({"params": params["unet"]}, sample, t, context)
    wanted = training_target(schedule, latents, draws.noise, t)
    return Prediction(logits, states, guidance, null_guidance, output, wanted)


def joint_loss(
    said: Prediction, labels: Int[Array, "b l"], edit_weight: float = 0.5, counts: Counts | None = None
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """L_ins + edit_weight * L_edit, the second averaged over all draws, and the metrics.

    `counts` are the whole batch's, where `said` and `labels` are of a part of it.
    """
    counts = Counts(count_labels(labels), said.output.shape[0]) if counts is None else counts
    l_ins = instruction_loss(said.logits, labels, counts.labels)
    l_edit = jnp.square(said.output.astype(jnp.float32) - said.target).mean((1, 2, 3)).sum() / counts.draws
    total = l_ins + edit_weight * l_edit
    accuracy = instruction_accuracy(said.logits, labels, counts.labels)
    return total, {"loss": total, "L_ins": l_ins, "L_edit": l_edit, "token_accuracy": accuracy}


def make_joint_loss(
    model: MGIE, img0_id: int, edit_weight: float = 0.5, noise_draws: int = 1, timestep_power: float = 1.0
) -> SplitLoss:
    """The joint loss on an `EditPairBatch`, as a step wants it: its draws are made from the step's key.

    Timesteps are drawn with a density that rises as t^(timestep_power - 1): 1 is the paper's uniform draw; above it the
    noisy steps, where the guidance decides what the picture becomes, are trained more than those that refine it.

    With `noise_draws` above 1 (the paper has 1), L_edit is averaged over that many times, noises and dropouts of every
    example: the same expected gradient, less noisy, and cheaper than as many examples where the MLLM costs most.
    """

    def draw(key: Key[Array, ""], batch: EditPairBatch) -> Draws:
        return make_draws(key, model, batch, noise_draws, timestep_power)

    def count(batch: EditPairBatch) -> Counts:
        return Counts(count_labels(batch.text.labels), batch.source.shape[0] * noise_draws)

    def value(
        trainable: PyTree, frozen: PyTree, batch: EditPairBatch, draws: Draws, counts: Counts
    ) -> tuple[Array, dict]:
        said = predict(model, merge_params(trainable, frozen), batch, draws, img0_id)
        return joint_loss(said, batch.text.labels, edit_weight, counts)

    return SplitLoss(draw, count, value)
