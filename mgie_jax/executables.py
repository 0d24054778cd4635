"""Compiled programs kept whole, so that a new process neither traces nor lowers nor compiles what an earlier one has.

JAX's own cache saves the compiling alone: it is asked once a program is traced and lowered, which takes seconds for an
edit's programs on any device. Here the question is put before that, so that everything that decides a program has to be
in its name: `environment` and `settings` for a process, `Store.program` for a call. What is kept is what
`jax.experimental.serialize_executable` makes; whatever cannot be loaded here is as good as none, and is made anew.
"""

from __future__ import annotations

import logging
import os
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import PyTree

from mgie_jax.kept import Files, digest, version

FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
BESIDE_THE_POINT = re.compile("cache|log|dump|traceback|transfer|timeout|platform|pprint|url|leak")  # settings of JAX
_log = logging.getLogger(__name__)
_compiling = Lock()


def described(x: Any) -> jax.ShapeDtypeStruct:
    """What of an argument decides a program: shape, dtype and, of an array that has a fixed place, its sharding."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    aval, sharding = jax.typeof(x), x.sharding if getattr(x, "committed", False) else None
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding, weak_type=aval.weak_type)


def signature(tree: PyTree) -> str:
    """A name for everything of a tree of `described` leaves that decides a program."""
    leaves, structure = jax.tree.flatten(tree)
    return digest(str(structure), *(f"{x.shape} {x.dtype} {x.weak_type} {x.sharding}" for x in leaves))


class Store:
    """Programs in a folder, for some devices.

    Args:
        folder: is made where it is missing.
        devices: that the programs run on, in the order of their mesh.
    """

    def __init__(self, folder: Path, devices: Sequence[jax.Device]):
        self._files, self._devices = Files(folder), list(devices)
        self._environment = environment(self._devices)

    def program(
        self, jitted: Callable, leading: tuple, arguments: tuple, static: dict[str, Any], signed: str,
        make: bool = True,
    ) -> tuple[jax.stages.Compiled | None, bool]:  # fmt: skip
        """The compiled program of a call, and whether it was there.

        Args:
            jitted: what `jax.jit` returned, of a function that only its name and `kept.SOURCES` decide.
            leading: static arguments that stand first. Their repr has to tell them apart, as that of nested frozen
                dataclasses does.
            arguments: the others, `described`.
            static: static keyword arguments, as `leading`.
            signed: the `signature` of `arguments`, or those of its parts.
            make: compile it where it is not there; otherwise it is None.

        Raises:
            ValueError: a static argument whose repr is only an address.
        """
        told = repr((jitted.__name__, leading, sorted(static.items())))
        if " at 0x" in told:
            raise ValueError(f"{told[:200]} does not tell a program from others")
        name = f"{jitted.__name__}-{digest(self._environment, settings(), told, signed)[:40]}"
        found = self._read(name, arguments)
        if found is not None or not make:
            return found, found is not None
        with _compiling, _without_jax_cache():
            compiled = jitted.trace(*leading, *arguments, **static).lower().compile()
        self._write(name, compiled)
        return compiled, False

    def _read(self, name: str, arguments: tuple) -> jax.stages.Compiled | None:
        found = self._files.read(name)
        if found is None:
            return None
        try:
            executable, out = found
            trees = jax.tree.structure((arguments, {})), jax.tree.structure(out)
            return serialize_executable.deserialize_and_load(executable, *trees, execution_devices=self._devices)
        except Exception as error:  # of the runtime, of another JAX: whatever it is, compiling helps
            _log.info("%s is of no use: %s", name, error)
            return None

    def _write(self, name: str, compiled: jax.stages.Compiled) -> None:
        try:
            executable, _, out = serialize_executable.serialize(compiled)
        except Exception as error:  # a runtime that cannot: the program runs all the same
            _log.info("%s cannot be kept: %s", name, error)
            return
        self._files.write(name, (executable, jax.tree.unflatten(out, range(out.num_leaves))))  # no pickle takes `out`


def settings() -> str:
    """JAX's, as they are here and now: some can be set for a block of code, in one thread."""
    values = jax.config.values  # of all threads; an attribute is this one's, but some settings have none
    return repr([(name, getattr(jax.config, name, values[name])) for name in _deciding()])


@cache
def _deciding() -> list[str]:
    return sorted(name for name in jax.config.values if not BESIDE_THE_POINT.search(name))


def environment(devices: Sequence[jax.Device]) -> str:
    """A name for all else that decides programs in this process, whatever the call."""
    client = devices[0].client
    return digest(
        version(), *(os.environ.get(name, "") for name in FLAGS),
        client.platform, client.platform_version, _processor() if client.platform == "cpu" else "",
        str(jax.device_count()), *(f"{device.id} {device.device_kind}" for device in devices),
    )  # fmt: skip


@cache
def _processor() -> str:
    """What instructions the processor has: code for one may not run on another that shares the folder."""
    with suppress(OSError):
        return "\n".join(sorted({
            line for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith(("model name", "flags", "Features", "CPU part"))
        }))  # fmt: skip
    return f"{platform.machine()} {platform.processor()} {platform.node()}"


@contextmanager
def _without_jax_cache() -> Iterator[None]:
    """Compiling for certain: on a CPU what JAX's cache returns cannot be serialised again, its functions are lost."""
    was = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it looks at the setting once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", was)
        compilation_cache.reset_cache()
