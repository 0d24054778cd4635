"""The noise schedule: betas, noising, and what the network predicts (DDPM; v: Salimans & Ho 2022)."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Float64, Int


@dataclass(frozen=True)
class ScheduleConfig:
    """Fields of diffusers' `scheduler_config.json`; the defaults are Stable Diffusion v1.5's.

    Raises ValueError for a `beta_schedule` but "scaled_linear" and a `prediction_type` but "epsilon" and
    "v_prediction".
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    steps_offset: int = 1
    prediction_type: str = "epsilon"

    def __post_init__(self):
        if self.beta_schedule != "scaled_linear":
            raise ValueError(f"beta_schedule {self.beta_schedule!r} is not 'scaled_linear'")
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type {self.prediction_type!r} is not 'epsilon' or 'v_prediction'")


@struct.dataclass
class Schedule:
    """The schedule on the device, float32. `alphas_cumprod[t]` is the signal's share of variance at t.

    `sigmas[t]` is the noise-to-signal ratio sqrt((1 - alphas_cumprod) / alphas_cumprod).
    """

    betas: Float[Array, " t"]
    alphas_cumprod: Float[Array, " t"]
    sigmas: Float[Array, " t"]
    prediction_type: str = struct.field(pytree_node=False)


def scaled_linear_betas(config: ScheduleConfig) -> Float64[np.ndarray, " t"]:
    """Betas whose square roots are evenly spaced (latent diffusion), float64."""
    return np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.num_train_timesteps) ** 2


def alphas_cumprod(config: ScheduleConfig) -> Float64[np.ndarray, " t"]:
    """The running product of 1 - beta, float64: the samplers' tables are made from it."""
    return np.cumprod(1 - scaled_linear_betas(config))


def make_schedule(config: ScheduleConfig) -> Schedule:
    """Computed in float64 and rounded once, so it is within 1e-6 of diffusers' float32 products."""
    alphas = alphas_cumprod(config)
    return Schedule(
        betas=jnp.asarray(scaled_linear_betas(config), jnp.float32),
        alphas_cumprod=jnp.asarray(alphas, jnp.float32),
        sigmas=jnp.asarray(np.sqrt((1 - alphas) / alphas), jnp.float32),
        prediction_type=config.prediction_type,
    )


def signal_and_noise(
    schedule: Schedule, t: Int[Array, " b"]
) -> tuple[Float[Array, "b 1 1 1"], Float[Array, "b 1 1 1"]]:
    """The factors of x0 and of the noise in x_t; their squares add up to 1.

    t is in [0, num_train_timesteps).
    """
    share = schedule.alphas_cumprod[t][:, None, None, None]
    return jnp.sqrt(share), jnp.sqrt(1 - share)


def add_noise(
    schedule: Schedule, x0: Float[Array, "b h w c"], noise: Float[Array, "b h w c"], t: Int[Array, " b"]
) -> Float[Array, "b h w c"]:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise."""
    signal, sigma = signal_and_noise(schedule, t)
    return signal * x0 + sigma * noise


def training_target(
    schedule: Schedule, x0: Float[Array, "b h w c"], noise: Float[Array, "b h w c"], t: Int[Array, " b"]
) -> Float[Array, "b h w c"]:
    """What the network is to predict: the noise, or v = sqrt(abar_t) noise - sqrt(1 - abar_t) x0."""
    if schedule.prediction_type == "epsilon":
        return noise
    signal, sigma = signal_and_noise(schedule, t)
    return signal * noise - sigma * x0
