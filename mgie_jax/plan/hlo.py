"""Compiled HLO as text, read: computations, their instructions, the arrays they make, how often loops turn.

The text is what `Compiled.as_text` returns and XLA dumps. It is that of one device: shapes are those of shards.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "f4e2m1fn": 4,
}  # fmt: skip
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")
_PASSED_ON = ("bitcast", "copy", "reshape", "convert", "bitcast-convert")


@dataclass(frozen=True)
class Array:
    """One array of a shape.

    Attributes:
        layout: as the text has it, without its braces, such as "1,0:T(8,128)(2,1)S(1)".
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def space(self) -> int:
        """Where it lies: 0 is a device's main memory; others are on the chip (on a TPU 1 is VMEM) or with the host."""
        found = _SPACE.search(self.layout)
        return int(found[1]) if found else 0

    @property
    def nbytes(self) -> int:
        """Without padding."""
        return self._bytes(math.prod(self.dims))

    @property
    def padded_bytes(self) -> int:
        """As it lies in memory: a TPU pads the last dimensions of its layout to whole tiles."""
        tile, dims = _TILE.search(self.layout), list(self.dims)
        if not tile or not dims:
            return self._bytes(math.prod(dims))
        order = [int(i) for i in self.layout.partition(":")[0].split(",") if i]
        sizes = [int(size) for size in tile[1].split(",")][::-1]
        for dim, size in zip(order, sizes, strict=False):
            dims[dim] = -(-dims[dim] // size) * size
        return self._bytes(math.prod(dims))

    def _bytes(self, elements: int) -> int:
        bits = _BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 0)  # tokens and opaque have none
        return -(-elements * bits // 8)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        operands: names of instructions of the same computation; of a parameter, its number.
        text: what follows the operands: attributes and metadata.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """What it makes, tuples taken apart."""
        return arrays(self.shape)

    @property
    def op_name(self) -> str:
        """The operation of the traced program that it comes from; empty where XLA does not say."""
        return self.attribute(r'op_name="([^"]*)"')

    def attribute(self, pattern: str) -> str:
        found = re.search(pattern, self.text)
        return found[1] if found else ""

    @property
    def calls(self) -> str:
        """The computation of a fusion, a call or an asynchronous operation."""
        return self.attribute(r"\b(?:calls|to_apply)=%?([\w.\-]+)")


@dataclass(frozen=True)
class Computation:
    """Instructions by name, in their order; `root` is the name of the one whose value is returned."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    @cached_property
    def parameters(self) -> dict[int, str]:
        return {int(i.operands[0]): i.name for i in self if i.opcode == "parameter"}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Which instructions read a value."""
        found: dict[str, list[Instruction]] = {}
        for instruction in self:
            for name in dict.fromkeys(instruction.operands):
                found.setdefault(name, []).append(instruction)
        return found


@dataclass(frozen=True)
class Module:
    """A whole program; `partitions` is the number of devices it is for, of one slice where there are several."""

    computations: dict[str, Computation]
    entry: Computation
    partitions: int

    @classmethod
    def parse(cls, text: str) -> "Module":
        """Raises ValueError where there is no entry computation in the text."""
        computations, entry, name, lines, root = {}, "", "", {}, ""
        for line in _whole_lines(text):
            if not line[:1].isspace() and (head := _HEAD.match(line)):
                name, lines, root = head[2], {}, ""
                entry = name if head[1] else entry
            elif line.startswith("}") and name:  # what a SparseCore does has more behind it
                computations[name] = Computation(name, lines, root or next(reversed(lines), ""))
                name = ""
            elif name and (start := _LINE.match(line)):
                instruction = _instruction(start[2], line[start.end() :])
                lines[instruction.name] = instruction
                root = instruction.name if start[1] else root
        if entry not in computations:
            raise ValueError("this is no HLO text: it has no ENTRY computation")
        found = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
        return cls(computations, computations[entry], int(found[1]) if found else 1)

    def turns(self, computation: Computation, loop: Instruction) -> int | None:
        """How often the body of a `while` of a computation runs; None where that depends on data."""
        if known := loop.attribute(r'known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        condition = self.computations[loop.attribute(r"condition=%?([\w.\-]+)")]
        body = self.computations[loop.attribute(r"body=%?([\w.\-]+)")]
        compare = self._resolve((condition,), condition.root)
        if compare is None or compare[1].opcode != "compare" or len(compare[1].operands) != 2:
            return None
        sides = [self._resolve(compare[0], operand) for operand in compare[1].operands]
        if None in sides:
            return None
        values = [_constant(side[1]) for side in sides]
        at = [_element(*side) for side in sides]
        init = self._resolve((computation,), loop.operands[0])
        starts = [self._start(init, place) for place in at]
        moving = 0 if at[0] is not None and self._moves(body, at[0]) else 1
        limit = values[1 - moving] if values[1 - moving] is not None else starts[1 - moving]
        if at[moving] is None or limit is None:
            return None
        step, start = self._step(body, at[moving]), starts[moving] or 0
        if not step:
            return None
        direction = compare[1].attribute(r"direction=(\w+)")
        ends = {"LT": limit, "GT": limit, "LE": limit + 1, "GE": limit - 1, "NE": limit}
        return max(0, -(-(ends[direction] - start) // step)) if direction in ends else None

    def _resolve(self, scope: tuple, name: str) -> tuple[tuple, Instruction] | None:
        """What makes a value, seen through copies, and through fusions down to what is inside and up to what they read.

        A scope is the computation, then for each fusion around it the fusion and the computation it stands in.
        """
        instruction = scope[0].instructions.get(name)
        if instruction is None:
            return None
        if instruction.opcode in _PASSED_ON:
            return self._resolve(scope, instruction.operands[0])
        if instruction.opcode == "fusion":
            inside = self.computations[instruction.calls]
            return self._resolve((inside, instruction, *scope), inside.root)
        if instruction.opcode == "parameter" and len(scope) > 1:
            return self._resolve(scope[2:], scope[1].operands[int(instruction.operands[0])])
        return scope, instruction

    def _start(self, init: tuple | None, place: int | None) -> int | None:
        if place is None or init is None or init[1].opcode != "tuple":
            return None
        made = self._resolve(init[0], init[1].operands[place])
        return None if made is None else _constant(made[1])

    def _moves(self, body: Computation, place: int) -> bool:
        return self._step(body, place) is not None

    def _step(self, body: Computation, place: int) -> int | None:
        """By how much a turn changes an element of a loop's state; None where it is not by a constant."""
        root = self._resolve((body,), body.root)
        if root is None or root[1].opcode != "tuple":
            return None
        made = self._resolve(root[0], root[1].operands[place])
        if made is None or made[1].opcode not in ("add", "subtract"):
            return None
        sides = [self._resolve(made[0], operand) for operand in made[1].operands]
        for side, other in (sides, sides[::-1]):
            if side and other and _element(*side) == place and (step := _constant(other[1])) is not None:
                return step if made[1].opcode == "add" else -step
        return None


def _whole_lines(text: str) -> Iterator[str]:
    """Lines, those that the attributes of a kernel break put together again."""
    held = ""
    for line in text.splitlines():
        if line.startswith(('"', "}}")):
            held += line
            continue
        yield held
        held = line
    yield held


def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays of "f32[2,3]{1,0}" or of a tuple of such."""
    return tuple(
        Array(dtype, tuple(int(size.lstrip("<=")) for size in dims.split(",") if size), layout)
        for dtype, dims, layout in _ARRAY.findall(shape)
    )


def _instruction(name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opens = rest.index("(")
    end = _closing(rest, opens)
    opcode, inside = rest[:opens], rest[opens + 1 : end - 1]
    operands = tuple(_NAME.findall(inside))
    if not operands and opcode in ("parameter", "constant"):
        operands = (inside,)
    return Instruction(name, shape, opcode, operands, rest[end:])


def _closing(text: str, at: int) -> int:
    """Behind the parenthesis that closes the one at `at`."""
    depth = 0
    for match in re.finditer(r"[()]", text[at:]):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return at + match.end()
    raise ValueError(f"this is no HLO text: {text[:80]}")


def _constant(instruction: Instruction) -> int | None:
    if instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.operands[0]):
        return None
    return int(instruction.operands[0])


def _element(scope: tuple, instruction: Instruction) -> int | None:
    """Which element of a loop's state a value is."""
    if instruction.opcode != "get-tuple-element" or len(scope) > 1:
        return None
    source = scope[0].instructions[instruction.operands[0]]
    return int(instruction.attribute(r"index=(\d+)")) if source.opcode == "parameter" else None
