"""Samplers, and the three-branch guidance of InstructPix2Pix, as functions over a denoiser.

Every sampler here is linear in what it touches: the latents, the network's output, the previous prediction
of the clean latents, and fresh noise. So a sampler *is* a table of coefficients, one row a step, made ahead
in float64; one `step` serves them all, and `run` scans it over the rows as one compiled loop. A loop may be
cut into chunks (for a progress bar) by running over `rows` of the table, the state carried between.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Float64, Int, Key, PyTree

from mgie_jax.diffusion.schedule import ScheduleConfig, alphas_cumprod
from mgie_jax.types import HostOrDevice

Denoise = Callable[[Float[Array, "b h w c"], Any], Float[Array, "b h w c"]]
"""(model input, the step's timestep or what stands for it) -> the network's raw output, epsilon or v."""

NoiseFn = Callable[[Int[Array, ""]], Float[Array, "b h w c"]]
"""Step index -> standard normal noise in the latents' shape."""


class Table(NamedTuple):
    """Coefficients of every step, float32 (`index`: int32).

    x0   = x0_x * x + x0_out * output
    next = next_x * x + next_x0 * x0 + next_prev * (previous x0) + next_noise * noise
    """

    index: Any
    timestep: Any
    scale_in: Any  # what x is multiplied by before the network sees it
    x0_x: Any
    x0_out: Any
    next_x: Any
    next_x0: Any
    next_prev: Any
    next_noise: Any

    def rows(self, start: int, stop: int) -> "Table":
        """The steps from `start` up to `stop`."""
        return Table(*(column[start:stop] for column in self))


class Sampler(NamedTuple):
    """A sampler for a number of steps. The first latents are `init_noise_sigma` times unit noise."""

    table: Table
    init_noise_sigma: float
    stochastic: bool


class State(NamedTuple):
    """Latents on their way, and the latest prediction of the clean latents (also fit for a preview)."""

    x: Float[Array, "b h w c"]
    x0: Float[Array, "b h w c"]


def euler_ancestral(config: ScheduleConfig, steps: int) -> Sampler:
    """Euler steps to sigma_down, then noise up to the next sigma (k-diffusion `sample_euler_ancestral`).

    Timesteps are evenly spaced over the whole range, fractions allowed, as diffusers'
    `EulerAncestralDiscreteScheduler` has them by default ("linspace"). The latents are x0 + sigma * noise.
    Raises ValueError where `steps` is not in [1, num_train_timesteps].
    """
    _check(config, steps)
    timestep = np.linspace(0, config.num_train_timesteps - 1, steps)[::-1]
    sigma = _sigmas(config, timestep)
    after = np.append(sigma[1:], 0.0)
    up = np.sqrt(after**2 * (sigma**2 - after**2) / sigma**2)
    down = np.sqrt(after**2 - up**2)
    if config.prediction_type == "epsilon":
        x0_x, x0_out = np.ones(steps), -sigma
    else:
        x0_x, x0_out = 1 / (sigma**2 + 1), -sigma / np.sqrt(sigma**2 + 1)
    table = _table(
        timestep,
        1 / np.sqrt(sigma**2 + 1),
        x0_x,
        x0_out,
        next_x=down / sigma,
        next_x0=1 - down / sigma,
        next_noise=up,
    )
    return Sampler(table, float(sigma[0]), stochastic=True)


def ddim(config: ScheduleConfig, steps: int) -> Sampler:
    """Deterministic DDIM (Song et al. 2020, eq. 12 with eta 0).

    Timesteps and the end of the chain are diffusers' `DDIMScheduler` with "leading" spacing, `steps_offset`,
    `set_alpha_to_one=False` and `clip_sample=False`, as in Stable Diffusion v1.5. Raises ValueError where
    `steps` is not in [1, num_train_timesteps], or where `steps_offset` takes the first timestep past the end.
    """
    _check(config, steps)
    stride = config.num_train_timesteps // steps
    timestep = np.arange(steps)[::-1] * stride + config.steps_offset
    if timestep[0] >= config.num_train_timesteps:
        offset = config.steps_offset
        raise ValueError(f"ddim: {steps} steps with steps_offset {offset} start at t = {timestep[0]}")
    abar = alphas_cumprod(config)
    now, after = abar[timestep], abar[np.maximum(timestep - stride, 0)]
    ratio = np.sqrt((1 - after) / (1 - now))
    x0_x, x0_out = _variance_preserving_x0(config, np.sqrt(now), np.sqrt(1 - now))
    table = _table(timestep, np.ones(steps), x0_x, x0_out, next_x=ratio, next_x0=np.sqrt(after) - np.sqrt(now) * ratio)
    return Sampler(table, 1.0, stochastic=False)


def dpmpp_2m(config: ScheduleConfig, steps: int) -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022), midpoint; the first and the last step are of first order.

    Timesteps and the final sigma of zero are the defaults of diffusers' `DPMSolverMultistepScheduler`.
    Raises ValueError where `steps` is not in [1, num_train_timesteps).
    """
    _check(config, steps, below=True)
    timestep = np.linspace(0, config.num_train_timesteps - 1, steps + 1).round()[:0:-1]
    sigma = _sigmas(config, timestep)
    after = np.append(sigma[1:], 0.0)
    signal, signal_after = 1 / np.sqrt(sigma**2 + 1), 1 / np.sqrt(after**2 + 1)
    # lambda = log(signal / noise) = -log(sigma), so exp(-h) = after / sigma: at the last step 0, h infinite.
    weight = signal_after * (1 - after / sigma)
    half = np.zeros(steps)  # 0.5 / r, r the last step's h over this one's; zero makes the step first order
    h = np.log(sigma[:-1] / sigma[1:])
    half[1:-1] = 0.5 * h[1:] / h[:-1]
    x0_x, x0_out = _variance_preserving_x0(config, signal, sigma * signal)
    table = _table(
        timestep,
        np.ones(steps),
        x0_x,
        x0_out,
        next_x=after * signal_after / (sigma * signal),
        next_x0=weight * (1 + half),
        next_prev=-weight * half,
    )
    return Sampler(table, 1.0, stochastic=False)


SAMPLERS = {"euler_ancestral": euler_ancestral, "ddim": ddim, "dpmpp_2m": dpmpp_2m}


def init(sampler: Sampler, noise: Float[Array, "b h w c"]) -> State:
    """The state before the first step, from unit noise."""
    x = sampler.init_noise_sigma * noise.astype(jnp.float32)
    return State(x, jnp.zeros_like(x))


def step(state: State, row: Table, output: Float[Array, "b h w c"], noise: Float[Array, "b h w c"] | None) -> State:
    """One step, in float32, from the network's output at `row.scale_in * state.x`."""
    x0 = row.x0_x * state.x + row.x0_out * output.astype(jnp.float32)
    x = row.next_x * state.x + row.next_x0 * x0 + row.next_prev * state.x0
    if noise is not None:
        x = x + row.next_noise * noise
    return State(x, x0)


def run(
    denoise: Denoise, table: Table, state: State, noise_fn: NoiseFn | None = None, times: PyTree | None = None
) -> State:
    """Scan `step` over the rows of `table`. `noise_fn` is None for the deterministic samplers.

    The indices that `noise_fn` sees are those of the whole table, so chunks draw what one run draws. `denoise` gets a
    row of `times` with each step, by default its timestep.
    """

    def body(state, row):
        row, time = row
        output = denoise(row.scale_in * state.x, time)
        return step(state, row, output, None if noise_fn is None else noise_fn(row.index)), None

    table = jax.tree.map(jnp.asarray, table)
    return jax.lax.scan(body, state, (table, table.timestep if times is None else times))[0]


def noise_like(keys: Key[Array, " b"], step: int | Int[Array, ""], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Unit noise of `shape` (b, ...), each row from its own key: a row is the same alone or in a batch."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape[1:]))(keys)


def noise_from_keys(keys: Key[Array, " b"], shape: tuple[int, ...]) -> tuple[Float[Array, "b ..."], NoiseFn]:
    """The first noise, which is the same for each sampler and number of steps, and the steps' `noise_fn`."""
    return noise_like(keys, 0, shape), lambda i: noise_like(keys, i + 1, shape)


TEXT, IMAGE, NEITHER = 0, 1, 2
"""The branches of InstructPix2Pix's guidance show the UNet guidance and photo, the photo alone, neither."""


@struct.dataclass
class Scales:
    """How far each row follows the guidance, and how far it keeps the photo.

    `shown` are the branches that count: one with a weight of zero in every row need not be computed (`scales`).
    """

    text: Float[HostOrDevice, " b"]
    image: Float[HostOrDevice, " b"]
    shown: tuple[int, ...] = struct.field(pytree_node=False, default=(TEXT, IMAGE, NEITHER))


def scales(rows: int, text: float, image: float) -> Scales:
    """Scales that are the same in all rows."""
    shown = tuple(branch for branch, weight in enumerate(_weights(text, image)) if weight != 0.0)
    return Scales(np.full(rows, text, np.float32), np.full(rows, image, np.float32), shown)


def _weights(text: Any, image: Any) -> tuple[Any, Any, Any]:
    """Of the branches in uncond + text * (text - image) + image * (image - uncond) (InstructPix2Pix, eq. 3)."""
    return text, image - text, 1.0 - image


def branches(
    guidance: Float[Array, "b q d"],
    null_guidance: Float[Array, "#b q d"],
    image_latents: Float[Array, "b h w c"],
    shown: tuple[int, ...] = (TEXT, IMAGE, NEITHER),
) -> tuple[Float[Array, "b n q d"], Float[Array, "b n h w c"]]:
    """What the UNet is shown in the n branches of InstructPix2Pix's guidance that are asked for.

    An example's branches stand side by side, so that a batch split over devices stays split.
    """
    null = jnp.broadcast_to(null_guidance, guidance.shape)
    contexts, photos = (guidance, null, null), (image_latents, image_latents, jnp.zeros_like(image_latents))
    return jnp.stack([contexts[i] for i in shown], axis=1), jnp.stack([photos[i] for i in shown], axis=1)


def guided(unet: Callable[[Float[Array, "b h w c"], Any], Float[Array, "bn h w c"]], scales: Scales) -> Denoise:
    """InstructPix2Pix's guidance: a denoiser of what `unet` says in each of the `branches` of `scales.shown`.

    The result is uncond + scales.text * (text - image) + scales.image * (image - uncond), on epsilon or v alike.
    """
    found = _weights(jnp.asarray(scales.text), jnp.asarray(scales.image))
    weights = jnp.stack([found[i] for i in scales.shown], axis=1)[..., None, None, None]

    def denoise(x: Float[Array, "b h w c"], step: Any) -> Float[Array, "b h w c"]:
        output = unet(x, step).astype(jnp.float32)
        return (weights * output.reshape(-1, len(scales.shown), *output.shape[1:])).sum(1)

    return denoise


def _check(config: ScheduleConfig, steps: int, below: bool = False) -> None:
    most = config.num_train_timesteps - below
    if not 1 <= steps <= most:
        raise ValueError(f"steps must be in [1, {most}], got {steps}")


def _sigmas(config: ScheduleConfig, timestep: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Noise-to-signal ratios, interpolated linearly at fractional timesteps."""
    abar = alphas_cumprod(config)
    return np.interp(timestep, np.arange(len(abar)), np.sqrt((1 - abar) / abar))


def _variance_preserving_x0(config: ScheduleConfig, signal: np.ndarray, noise: np.ndarray):
    """Coefficients of x and of the output in x0, for x = signal * x0 + noise * epsilon."""
    if config.prediction_type == "epsilon":
        return 1 / signal, -noise / signal
    return signal, -noise


def _table(timestep, scale_in, x0_x, x0_out, next_x, next_x0, next_prev=0.0, next_noise=0.0) -> Table:
    steps = len(timestep)
    columns = (timestep, scale_in, x0_x, x0_out, next_x, next_x0, next_prev, next_noise)
    return Table(
        np.arange(steps, dtype=np.int32),
        *(np.broadcast_to(column, (steps,)).astype(np.float32) for column in columns),
    )
