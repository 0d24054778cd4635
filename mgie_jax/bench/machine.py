"""What the device at hand can do, measured like everything else: a large product of matrices, a large copy."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
from flax.typing import Dtype

LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "torch", "diffusers", "transformers")
# Side of the square matrices, and bytes copied, by platform: beyond all caches, yet fractions of a second.
SIZES = {"cpu": (1536, 2**28)}
ACCELERATOR = (8192, 2**31)


@dataclass(frozen=True)
class Rates:
    """FLOP/s of a large matmul and bytes/s of a large copy, of which each byte counts twice: read and written."""

    flops: float
    bytes: float

    def seconds(self, flops: float, nbytes: float) -> float:
        """How long work takes at least: as long as its arithmetic, or as its bytes, whichever is longer."""
        return max(flops / self.flops, nbytes / self.bytes)

    def bound(self, flops: float, nbytes: float) -> str:
        """Which of the two it is: "matmul" or "copy"."""
        return "matmul" if flops / self.flops >= nbytes / self.bytes else "copy"


def probes(dtype: Dtype) -> dict[str, tuple[Callable[[], object], float]]:
    """By name, what measures a rate: a function to be timed, and how much it does: FLOPs ("matmul") or bytes ("copy").

    Args:
        dtype: of the matrices.
    """
    side, nbytes = SIZES.get(jax.default_backend(), ACCELERATOR)
    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
    multiply = jax.jit(jnp.matmul)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)  # in place: new memory would be paid for page by page
    block = [jnp.zeros(nbytes // 4, jnp.float32)]

    def copy() -> None:
        block[0] = jax.block_until_ready(add(block[0]))

    return {
        "matmul": (lambda: jax.block_until_ready(multiply(matrix, matrix)), 2.0 * side**3),
        "copy": (copy, 2.0 * nbytes),
    }


def described() -> dict[str, object]:
    """The machine and its software: device, cores, and the versions of what is installed."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """A CPU's name, which JAX does not know."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or "cpu"
