"""The buffers of a compiled program, from what XLA dumps while it compiles: how it has assigned memory, and when each
value is alive.

With `--xla_dump_to=FOLDER --xla_dump_hlo_as_text` (`OPTIONS`) a compiler leaves there the compiled HLO, its buffer
assignment and its live ranges, also where the program turns out to be too large for the machine.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mgie_jax.plan.hlo import Computation, Instruction, Module, arrays

HLO, ASSIGNMENT, LIVE = "optimizations.txt", "optimizations-buffer-assignment.txt", "optimizations-live-range.txt"
_ALLOCATION = re.compile(r"allocation (\d+): size (\d+)(.*):$")
_VALUE = re.compile(r" value: <\d+ ([^ {]+)(\{[\d,]*\})?.* \(size=(\d+),offset=(\d+)\): (.*)$")
_RANGE = re.compile(r"    ([^ {]+)(\{[\d,]*\}):(\d+)-(\d+)$")


@dataclass(frozen=True)
class Buffer:
    """Memory of one device.

    Attributes:
        name: an argument's path, or the operation that makes it.
        kind: "argument" or "temporary".
    """

    name: str
    kind: str
    nbytes: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Assignment:
    """Bytes of each part of a program's main memory, and its temporaries.

    Attributes:
        outputs: results, `aliased` of them in the memory of arguments.
        temporaries: all that is needed between, once memory is shared as far as it goes.
        alive: the temporaries that are alive at once where most are, largest first.
    """

    outputs: int
    aliased: int
    temporaries: int
    alive: tuple[Buffer, ...]


@dataclass(frozen=True)
class _Value:
    name: str
    index: str
    nbytes: int
    offset: int
    shape: str


def options(folder: Path) -> dict[str, str | bool]:
    """Compiler options that make XLA leave its files in a folder."""
    return {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}


def dumped(folder: Path, name: str) -> str:
    """The text of one of the dumped files; empty where the compiler did not get so far."""
    found = sorted(folder.glob(f"*after_{name}"), key=lambda path: path.stat().st_size)
    return found[-1].read_text() if found else ""


def assignment(folder: Path, module: Module) -> Assignment:
    """How the compiler has laid out the main memory of a program it has dumped."""
    outputs, aliased, temporaries, values = 0, 0, 0, []
    for size, text, held in _allocations(dumped(folder, ASSIGNMENT)):
        if re.search(r"color [1-9]", text):
            continue  # on the chip
        if "maybe-live-out" in text:
            outputs += size
            aliased += size if "parameter" in text else 0
        elif "temp" in text and "thread-local" not in text:
            temporaries += size
            values += held
    ranges = {(name, index): (int(first), int(last)) for name, index, first, last in _ranges(folder)}
    alive = _peak(values, ranges)
    named = _Names(module)
    made = [Buffer(named(group), "temporary", group[0].nbytes, *_kind(group[0].shape)) for group in alive]
    return Assignment(outputs, aliased, temporaries, tuple(sorted(made, key=lambda b: -b.nbytes)))


def _allocations(text: str) -> Iterator[tuple[int, str, list[_Value]]]:
    found = None
    for line in text.splitlines():
        if head := _ALLOCATION.match(line):
            if found:
                yield found
            found = (int(head[2]), head[3], [])
        elif found and (value := _VALUE.match(line)):
            found[2].append(_Value(value[1], value[2] or "{}", int(value[3]), int(value[4]), value[5]))
    if found:
        yield found


def _ranges(folder: Path) -> list[tuple[str, ...]]:
    text = dumped(folder, LIVE).partition("BufferLiveRange:")[2].partition("Live ranges at")[0]
    return [found.groups() for line in text.splitlines() if (found := _RANGE.match(line))]


def _peak(values: list[_Value], ranges: dict[tuple[str, str], tuple[int, int]]) -> list[list[_Value]]:
    """The values alive at the moment at which they take most memory; those that share it together."""
    events = []
    for value in values:
        if span := ranges.get((value.name, value.index)):
            events += [(span[0], 1, value), (span[1] + 1, -1, value)]
    held, now, most, at = Counter(), 0, 0, None
    for time, change, value in sorted(events, key=lambda event: event[:2]):
        place = (value.offset, value.nbytes)
        now += value.nbytes * ((held[place] + change > 0) - (held[place] > 0))
        held[place] += change
        if now > most:
            most, at = now, time
    groups: dict[tuple[int, int], list[_Value]] = {}
    for value in values:
        span = ranges.get((value.name, value.index))
        if span and at is not None and span[0] <= at <= span[1]:
            groups.setdefault((value.offset, value.nbytes), []).append(value)
    return list(groups.values())


def _kind(shape: str) -> tuple[str, tuple[int, ...]]:
    found = arrays(shape)
    return (found[0].dtype, found[0].dims) if found else ("", ())


class _Names:
    """What the values of a program are called: by the operation of the traced program, if XLA still knows it."""

    def __init__(self, module: Module):
        self.module = module
        self.where: dict[str, Computation] = {i.name: c for c in module.computations.values() for i in c}
        self.loops: dict[str, tuple[Computation, Instruction]] = {}  # by their conditions and bodies
        for computation in module.computations.values():
            for i in computation:
                if i.opcode == "while":
                    for role in ("body", "condition"):
                        self.loops[i.attribute(rf"{role}=%?([\w.\-]+)")] = (computation, i)

    def __call__(self, group: list[_Value]) -> str:
        """Of values that share their memory, one of which was made first and the others go on with."""
        names = list(dict.fromkeys(name for value in group if (name := self._of(value))))
        return next((name for name in names if not name.endswith("/while")), names[0] if names else group[0].name)

    def _of(self, value: _Value) -> str:
        computation = self.where.get(value.name)
        if computation is None:
            return ""
        i, index = computation.instructions[value.name], value.index[1:-1]
        if index.isdigit() and i.opcode == "while":
            return self._carried(computation, i, int(index))
        if index.isdigit() and i.opcode == "parameter" and computation.name in self.loops:
            return self._carried(*self.loops[computation.name], int(index))
        return self._source(computation, i)

    def _source(self, computation: Computation, i: Instruction) -> str:
        """The operation that made what a nameless instruction hands on."""
        for _ in range(8):
            if i.op_name or not i.operands or i.opcode in ("parameter", "constant"):
                break
            i = computation.instructions[i.operands[0]]
        return i.op_name

    def _carried(self, around: Computation, loop: Instruction, index: int) -> str:
        """What an element of a loop's state is: what the body makes of it, or else what it began as."""
        body = self.module.computations[loop.attribute(r"body=%?([\w.\-]+)")]
        for scope, root in ((body, body.instructions[body.root]), (around, around.instructions[loop.operands[0]])):
            if root.opcode == "tuple" and (name := self._source(scope, scope.instructions[root.operands[index]])):
                return name
        return loop.op_name
