"""What is known of a compiled program: the answer of `compile`, and what everything else here reads."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mgie_jax.plan.buffers import Buffer


@dataclass(frozen=True)
class Memory:
    """Bytes of one device's main memory while a program runs.

    Attributes:
        arguments: what the program is given and reads.
        unread: what it is given and does not read, which lies there all the same.
        outputs: what it returns, `aliased` of it in memory of the arguments.
        temporaries: all else that the compiler asks for.
        code: the program itself.
    """

    arguments: int
    unread: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        return self.arguments + self.unread + self.outputs - self.aliased + self.temporaries + self.code


@dataclass(frozen=True)
class Flow:
    """The collectives of one kind over the same axes of the mesh, in one run, on one device.

    Attributes:
        dcn: whether they are between slices.
        links: ICI links that a device sends over at once (`machines.links`; of permutations 1, or up to 2 where they go
            both ways round); 0 between slices.
        count: how many run.
        payload, sent: bytes, as `traffic.Collective` has them.
    """

    kind: str
    axes: tuple[str, ...]
    dcn: bool
    links: float
    count: int
    payload: int
    sent: float


@dataclass(frozen=True)
class Exchange:
    """A collective of a run, on one device.

    Attributes:
        dtype, shape: of the largest array it makes, or of what it reads where that is cut up.
        op_name: the operation of the traced program that it is for.
        count: how often it runs; more than once in a loop.
        sent: bytes, all of these times.
    """

    kind: str
    axes: tuple[str, ...]
    dcn: bool
    dtype: str
    shape: tuple[int, ...]
    op_name: str
    count: int
    sent: float


@dataclass(frozen=True)
class Facts:
    """Of one program, on one device.

    Attributes:
        examples: rows of the batch, of all devices together.
        runs: how often it runs for a batch.
        mesh: sizes of the axes of the mesh it lies on.
        parts: bytes of arguments by the first two names of their paths, what is unread too.
        buffers: arguments, and those temporaries that are alive at once where most are; largest first.
        flops: of a run, as compiled: what several devices compute alike counts on each of them.
        shared_flops: a device's share of what the program as written computes, recomputation included.
        model_flops: a device's share of what is of use.
        hbm_bytes: moved through main memory in a run.
        moves: the operations that move most of it, and how much.
        flows: collectives by kind; `exchanges`: every one of them, those that send most first.
        while_turns: how often loops are taken to turn whose end depends on data; 0 where there is none.
        refused: what the compiler says where it finds that the program does not fit; else empty.
        trace_s, compile_s: seconds it took to trace and lower, and to compile.
    """

    name: str
    examples: int
    runs: int
    mesh: Mapping[str, int]
    memory: Memory
    parts: Mapping[str, int]
    buffers: tuple[Buffer, ...]
    flops: float
    shared_flops: float
    model_flops: float
    hbm_bytes: int
    moves: tuple[tuple[str, int], ...]
    flows: tuple[Flow, ...]
    exchanges: tuple[Exchange, ...]
    while_turns: int
    refused: str
    trace_s: float
    compile_s: float

    def fits(self, hbm_bytes: float) -> bool:
        """Whether it runs on devices with so much memory."""
        return not self.refused and self.memory.total <= hbm_bytes

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "Facts":
        return cls(**{
            **told,
            "memory": Memory(**told["memory"]),
            "buffers": tuple(Buffer(**_tuples(buffer)) for buffer in told["buffers"]),
            "moves": tuple((name, moved) for name, moved in told["moves"]),
            "flows": tuple(Flow(**_tuples(flow)) for flow in told["flows"]),
            "exchanges": tuple(Exchange(**_tuples(one)) for one in told["exchanges"]),
        })  # fmt: skip


def _tuples(told: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists only."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
