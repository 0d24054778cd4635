"""The compiled programs of an edit, in the order in which they run: write (or read), guide, start, denoise, decode."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from threading import Lock, Thread
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Key, PyTree, UInt8, UInt32

from mgie_jax import edit as stages
from mgie_jax.diffusion.sample import Sampler, Scales, State, Table
from mgie_jax.executables import Store, described, settings, signature
from mgie_jax.models.mgie import MGIE, NUM_IMG_TOKENS
from mgie_jax.sharding import BATCH, fit
from mgie_jax.text.decode import Decoded
from mgie_jax.types import HostOrDevice

CHUNKS = 4  # of the denoising, between which progress is told


def _start(sampler: Sampler, conditions: stages.Conditions, seeds: UInt32[HostOrDevice, " b"]):
    keys = jax.vmap(jax.random.key)(seeds)
    return keys, stages.start(sampler, conditions, keys)


write = jax.jit(stages.write, static_argnames=("model", "special"))
read = jax.jit(stages.read, static_argnames=("model", "special"))
guide = jax.jit(stages.guide, static_argnames="model")
start = jax.jit(_start)
denoise = jax.jit(stages.denoise, static_argnames=("model", "stochastic"))
decode = jax.jit(stages.decode, static_argnames="model")


class Programs:
    """The programs of one model, called with what comes after the model and its parameters.

    Args:
        params: of `model`; their shapes will do for what runs nothing.
        mesh: that the parameters lie on; None where they lie on JAX's default device.
        store: where compiled programs are kept; None: JAX traces each, and then looks into its own cache.
        begun: others that have begun to load programs, which are taken over if they are of such parameters.
    """

    def __init__(
        self, model: MGIE, params: PyTree, special: stages.Special, *, mesh: Mesh | None = None,
        store: Store | None = None, begun: "Programs | None" = None,
    ):  # fmt: skip
        self._model, self._params, self._special, self._mesh = model, params, special, mesh
        self._ready: dict[str, tuple[jax.stages.Compiled, bool]] = {}
        self._turns, self._lock, self._seen = {}, Lock(), set()
        self._shapes = jax.tree.map(described, params)
        elsewhere = mesh is None and any(leaf.sharding for leaf in jax.tree.leaves(self._shapes))
        self._store = None if elsewhere else store
        self._signed = signature(self._shapes)
        if begun is not None and begun._same == self._same:
            self._ready, self._turns, self._lock, self._seen = begun._ready, begun._turns, begun._lock, begun._seen

    @property
    def _same(self) -> tuple:
        return self._model, self._special, self._signed, self._mesh

    def write(self, batch: stages.EditBatch) -> tuple[Decoded, Float[Array, "b 8 d"]]:
        said, states = self._run(write, text(batch), special=self._special)
        return said, self._by_rows(states)

    def read(self, batch: stages.EditBatch) -> Float[Array, "b 8 d"]:
        return self._by_rows(self._run(read, text(batch), special=self._special))

    def guide(self, states: Float[Array, "b 8 d"], pixels: Float[Array, "b h w 3"]) -> stages.Conditions:
        return self._run(guide, states, pixels)

    def start(
        self, plan: Sampler, conditions: stages.Conditions, seeds: UInt32[HostOrDevice, " b"]
    ) -> tuple[Key[Array, " b"], State]:
        sampler = Sampler(None, np.float32(plan.init_noise_sigma), None)
        return self._by_rows(self._run(start, sampler, conditions, seeds))

    def denoise(
        self, plan: Sampler, conditions: stages.Conditions, scales: Scales, rows: Table, state: State,
        keys: Key[Array, " b"],
    ) -> State:  # fmt: skip
        return self._by_rows(self._run(denoise, conditions, scales, rows, state, keys, stochastic=plan.stochastic))

    def decode(self, latents: Float[Array, "b h w c"]) -> UInt8[Array, "b h2 w2 3"]:
        return self._run(decode, latents)

    def look_ahead(self, plan: Sampler, batch: stages.EditBatch, text_too: bool = False) -> None:
        """Begins to load what comes after the MLLM, as far as it is kept, beside whatever is done meanwhile.

        Args:
            text_too: the MLLM's own program as well.
        """
        kind = (plan.stochastic, len(plan.table.timestep), batch.pixels.shape, batch.scales.shown)
        if self._store is None or kind in self._seen:
            return
        self._seen.add(kind)
        dry, hidden = Dry(self, make=False), self._model.config.mllm.llm.hidden_size
        states = dry.placed(jax.ShapeDtypeStruct((len(batch.ids), NUM_IMG_TOKENS, hidden), self._model.dtype))
        shapes = jax.tree.map(described, batch)

        def begin(load: Callable, *arguments: Any) -> None:
            with suppress(Exception), self.on_mesh():  # whatever it is, the edit will say it
                load(*arguments)

        if text_too:
            Thread(target=begin, args=(dry.write, shapes), name="programs of the text").start()
        Thread(target=begin, args=(dry.draw, plan, shapes, states), name="programs").start()

    def placed(self, tree: PyTree) -> PyTree:
        """On the devices: rows over `data` and `fsdp`, as far as these divide them."""
        if self._mesh is None:
            return jax.device_put(tree)

        return jax.tree.map(lambda x: self._put(x, NamedSharding(self._mesh, fit(BATCH, x.shape, self._mesh))), tree)

    def _put(self, x: HostOrDevice, sharding: NamedSharding) -> HostOrDevice:
        return jax.device_put(x, sharding)

    def _by_rows(self, tree: PyTree) -> PyTree:
        """`placed`, so that the next program finds a mesh's arrays where it wants them, whichever has made them."""
        return tree if self._mesh is None else self.placed(tree)

    def on_mesh(self) -> AbstractContextManager:
        """In which the programs are to be called."""
        return nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def compiled(
        self, jitted: Callable, shapes: tuple, static: dict[str, Any], make: bool = True
    ) -> tuple[jax.stages.Compiled | None, bool]:
        """The program of a call with arguments that are so `described`, and whether it was kept (`Store.program`)."""
        signed = signature(shapes)
        named = f"{jitted.__name__} {sorted(static.items())} {signed} {settings()}"
        with self._lock:
            turn = self._turns.setdefault(named, Lock())
        with turn:
            if named in self._ready:
                return self._ready[named]
            if jitted is not start:
                shapes, signed = (self._shapes, *shapes), self._signed + signed
            leading = () if jitted is start else (self._model,)
            if self._store is None:
                found = jitted.trace(*leading, *shapes, **static).lower().compile(), False
            else:
                found = self._store.program(jitted, leading, shapes, static, signed, make)
            if found[0] is not None:
                self._ready[named] = found
            return found

    def _run(self, jitted: Callable, *arguments: PyTree, **static: Any) -> PyTree:
        first = () if jitted is start else (self._params,)
        if self._store is None:
            return jitted(*(() if jitted is start else (self._model,)), *first, *arguments, **static)
        return self.compiled(jitted, jax.tree.map(described, arguments), static)[0](*first, *arguments)


class Dry(Programs):
    """Programs that are made ready and then not run: they take shapes, and return what theirs would, as shapes.

    Args:
        programs: those to make ready.
        make: compile what is not kept; otherwise the first that is not raises `NotKept`.
    """

    def __init__(self, programs: Programs, make: bool = True):
        vars(self).update(vars(programs))
        self._make = make

    def draw(self, plan: Sampler, batch: stages.EditBatch, states: PyTree) -> None:
        """Whatever comes after the MLLM, in order."""
        seeds = self.placed(jax.ShapeDtypeStruct((len(batch.ids),), np.uint32))
        conditions = self.guide(states, batch.pixels)
        keys, state = self.start(plan, conditions, seeds)
        for length in dict.fromkeys(last - first for first, last in chunks(len(plan.table.timestep))):
            state = self.denoise(plan, conditions, batch.scales, plan.table.rows(0, length), state, keys)
        self.decode(state.x)

    def placed(self, tree: PyTree) -> PyTree:
        return jax.tree.map(described, tree) if self._mesh is None else super().placed(tree)

    def _put(self, x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    def _run(self, jitted: Callable, *arguments: PyTree, **static: Any) -> PyTree:
        shapes = jax.tree.map(described, arguments)
        program, _ = self.compiled(jitted, shapes, static, self._make)
        if program is None:
            raise NotKept(jitted.__name__)
        placed = any(leaf.sharding for leaf in jax.tree.leaves((self._shapes, shapes)))
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding if placed else None), program.out_info
        )


class NotKept(Exception):
    """A program is not there that should not be compiled now."""


def text(batch: stages.EditBatch) -> stages.EditBatch:
    """What the MLLM reads of it: photos of another size are then no other program."""
    return batch.replace(pixels=None, scales=None)


def chunks(steps: int) -> list[tuple[int, int]]:
    """(first, end) of the denoising steps of each call: one step a call would cost an eighth of an edit on CPU."""
    size = max(1, steps // CHUNKS)
    return [(first, min(first + size, steps)) for first in range(0, steps, size)]
