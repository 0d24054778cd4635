"""One program on many hosts: joins JAX's own multi-controller runtime (`jax.distributed`), which does the rest."""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
"""Environment variables that place a process among others, as `launch/local.py` sets them."""


def initialize(asked: bool) -> None:
    """Joins the other processes of this run, if there are any; call it before anything touches a device.

    Where `JAX_NUM_PROCESSES` or `JAX_PROCESS_ID` is set, the three variables say which process this is. Otherwise,
    where `asked`, JAX finds out from its surroundings (TPU pods, GKE, SLURM, Open MPI). Processes on CPUs then exchange
    arrays by gloo.

    Args:
        asked: `config.distributed`.

    Raises:
        ValueError: the variables do not fit each other, or the surroundings say nothing.
    """
    address, count, index = (os.environ.get(name, "") for name in (ADDRESS, COUNT, INDEX))
    placed = bool(count or index)
    if not (asked or placed) or jax.distributed.is_initialized():
        return
    if placed and not (address and count.isdigit() and index.isdigit() and int(index) < int(count)):
        raise ValueError(
            f"{ADDRESS}={address!r}, {COUNT}={count!r}, {INDEX}={index!r}: give host:port, the number of processes, "
            "and which of them this is, counted from 0"
        )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if placed:
        jax.distributed.initialize(address, int(count), int(index))
        return
    try:
        jax.distributed.initialize()
    except ValueError as error:
        raise ValueError(
            f"config.distributed is set, but JAX knows no cluster here ({error}); set {ADDRESS}, {COUNT} and {INDEX} "
            "for each process, or leave config.distributed out for a single one"
        ) from error


@contextmanager
def joined(asked: bool, shared: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """`initialize`, and an end for what goes wrong in this process alone.

    JAX has a process wait, before it ends, for all others to end. But if it failed, they wait for it in the midst of a
    step, for minutes. So after an error it ends without waiting, and they learn of it at once.

    Args:
        shared: errors that all processes raise at the same point.
    """
    initialize(asked)
    try:
        yield
    except shared:
        raise
    except Exception as error:
        if jax.distributed.is_initialized():
            atexit.register(_leave, 2 if isinstance(error, ValueError) else 1)  # runs before JAX's own
        raise


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def to_host(tree: PyTree) -> PyTree:
    """The tree as whole NumPy arrays, wherever their parts lie; every process must ask, and has them afterwards."""

    def fetch(x: jax.Array) -> np.ndarray:
        return np.asarray(x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(fetch, tree)


def wait_for_all(where: str) -> None:
    """Returns when every process has come to this point, which all of them must call `where`."""
    multihost_utils.sync_global_devices(where)
