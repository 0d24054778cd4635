"""What a compiled program does on one device: FLOPs, bytes through its main memory (HBM), bytes between devices.

All are sums over the instructions of the compiled HLO, each as often as the loops around it turn. Of the branches of
a condition the one that moves most counts.

FLOPs: two for each multiply-add of a product or convolution; what several devices compute alike counts on each of them.
Those within custom calls are not to be seen here.

Main memory: an instruction reads its operands and writes its result, as far as they lie there and not on the chip;
padding is moved too. A fusion is one instruction: what is inside stays on the chip. What is only sliced counts as the
slices, what is updated in place as the update. Custom calls, kernels among them, count as what they are given and give.

Between devices: every kind of collective, also those that XLA has hidden in fusions, split into a start and a done or
handed to the host to be sent to other slices. `payload` is the whole array concerned (what an all-gather makes, what a
reduction reads), `sent` what each device must send of it at least: of n devices, (n - 1) / n of the payload to gather,
scatter or exchange it, twice that to reduce and share it, all of it to pass it on.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from mgie_jax.plan import arithmetic
from mgie_jax.plan.groups import crossed, pairs, replica_groups
from mgie_jax.plan.hlo import Array, Computation, Instruction, Module

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "domain", "add-dependency", "send", "recv", "infeed", "outfeed",
}  # fmt: skip
_SLICES = {"dynamic-slice", "slice", "gather"}
_WRAPPED = ("bitcast", "reshape", "copy", "convert", "transpose")


@dataclass(frozen=True)
class Mesh:
    """The mesh a program is for, as far as it matters here: sizes of its axes, and the slices that the first spans."""

    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    slices: int = 1


@dataclass(frozen=True)
class Collective:
    """A collective operation of a program.

    Attributes:
        axes: names of the mesh's axes that it crosses.
        dcn: whether it is between slices.
        members: devices (or slices) in each of its groups.
        payload: bytes; see above.
        op_name: the operation of the traced program that it is for.
        upwards: of a permutation, whether most devices send to one of a higher number.
    """

    kind: str
    axes: tuple[str, ...]
    dcn: bool
    members: int
    payload: int
    dtype: str
    shape: tuple[int, ...]
    op_name: str
    upwards: bool = False

    @property
    def sent(self) -> float:
        """Bytes that each device sends."""
        share = (self.members - 1) / self.members
        return self.payload * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


@dataclass
class Traffic:
    """FLOPs, bytes through main memory, the same by operation, and how often each collective runs."""

    flops: int = 0
    hbm_bytes: int = 0
    operations: Counter = field(default_factory=Counter)
    collectives: Counter = field(default_factory=Counter)

    def add(self, other: "Traffic", times: int = 1) -> None:
        self.flops += times * other.flops
        self.hbm_bytes += times * other.hbm_bytes
        for mine, theirs in ((self.operations, other.operations), (self.collectives, other.collectives)):
            for key, value in theirs.items():
                mine[key] += times * value


def traffic(module: Module, mesh: Mesh, while_turns: int = 1) -> Traffic:
    """What one run of a program moves on one device.

    Args:
        while_turns: turns of a loop whose end depends on data; one around another such loop turns once.
    """
    return _Reader(module, mesh, while_turns).of(module.entry)


class _Reader:
    def __init__(self, module: Module, mesh: Mesh, while_turns: int):
        self.module, self.mesh, self.while_turns = module, mesh, while_turns
        self.known: dict[str, Traffic] = {}

    def of(self, computation: Computation) -> Traffic:
        if computation.name not in self.known:
            total, seen = Traffic(), set()
            for instruction in computation:
                for times, part in self._parts(computation, instruction, seen):
                    total.add(part, times)
            self.known[computation.name] = total
        return self.known[computation.name]

    def _parts(self, computation: Computation, i: Instruction, seen: set) -> Iterator[tuple[int, Traffic]]:
        opcode = i.opcode
        if opcode == "while":
            turns, body = self.module.turns(computation, i), self._named(i, "body")
            by_data = 1 if self._ends_by_data(body) else self.while_turns
            yield by_data if turns is None else turns, self.of(body)
        elif opcode == "conditional":
            yield 1, max((self.of(branch) for branch in self._branches(i)), key=lambda t: t.hbm_bytes)
        elif opcode in ("call", "async-start"):
            yield 1, self.of(self.module.computations[i.calls])
        elif not opcode.endswith(("-done", "-update")) and opcode not in _FREE:
            # A collective that XLA spreads over several fusions has the same channel in each of them.
            hidden = list(self._collectives(computation, i))
            fresh = [c for channel, c in hidden if channel not in seen]
            seen.update(channel for channel, _ in hidden if channel)
            flops, moved = self._flops(computation, i), self._moved(computation, i)
            yield 1, Traffic(flops, moved, Counter({i.op_name or i.opcode: moved}), Counter(fresh))
        elif opcode == "send":
            sent = self._between_slices(computation, i)
            yield 1, Traffic(collectives=Counter([sent] if sent else []))

    def _ends_by_data(self, computation: Computation) -> bool:
        """Whether there is a loop in it whose number of turns is not known before it runs."""
        for i in computation:
            within = []
            if i.opcode == "while":
                if self.module.turns(computation, i) is None:
                    return True
                within = [self._named(i, "body")]
            elif i.opcode == "conditional":
                within = self._branches(i)
            elif i.opcode == "call":
                within = [self.module.computations[i.calls]]
            if any(self._ends_by_data(inside) for inside in within):
                return True
        return False

    def _branches(self, i: Instruction) -> list[Computation]:
        found = i.attribute(r"branch_computations=\{([^}]*)\}").replace("%", "").split(",")
        names = [name.strip() for name in found if name.strip()] or [
            i.attribute(rf"{side}_computation=%?([\w.\-]+)") for side in ("true", "false")
        ]
        return [self.module.computations[name] for name in names]

    def _named(self, i: Instruction, role: str) -> Computation:
        return self.module.computations[i.attribute(rf"{role}=%?([\w.\-]+)")]

    def _flops(self, computation: Computation, i: Instruction) -> int:
        if i.opcode == "fusion":
            inside = self.module.computations[i.calls]
            return sum(self._flops(inside, instruction) for instruction in inside)
        return arithmetic.flops(computation, i)

    # Between devices.

    def _collectives(self, computation: Computation, i: Instruction) -> Iterator[tuple[str, Collective]]:
        """With their channels, which are empty where there is none."""
        if i.opcode == "fusion":
            inside = self.module.computations[i.calls]
            for instruction in inside:
                for channel, found in self._collectives(inside, instruction):
                    root = inside.instructions[inside.root]
                    scattered = found.kind == "all-reduce" and root.opcode == "dynamic-slice" and i.text.find(
                        "kind=kCustom") >= 0  # fmt: skip
                    name = found.op_name or i.op_name
                    yield channel, replace(found, kind="reduce-scatter" if scattered else found.kind, op_name=name)
        kind = i.opcode.removesuffix("-start")
        if kind not in KINDS:
            return
        made = _result(i)
        if kind in ("reduce-scatter", "all-to-all"):
            made = [x for name in i.operands for x in computation.instructions[name].arrays]
        payload, first = sum(x.nbytes for x in made), max(made, key=lambda x: x.nbytes)
        sizes = self._sizes()
        upwards = False
        if kind == "collective-permute":
            groups, members = pairs(i.text), 2
            upwards = int((groups[:, 0] < groups[:, 1]).sum()) > len(groups) / 2
        else:
            groups = replica_groups(i.text, math.prod(sizes))
            members = groups.shape[1]
        if members == 1 or not groups.size:
            return
        axes = tuple(self.mesh.axes[axis] for axis in crossed(groups, sizes))
        across = self._across(groups, sizes)
        channel = i.attribute(r"channel_id=(\d+)")
        yield channel, Collective(kind, axes, across, members, payload, first.dtype, first.dims, i.op_name, upwards)

    def _sizes(self) -> tuple[int, ...]:
        """The mesh that the program's numbers of devices are places in: of one slice, where each has its program."""
        first, *others = self.mesh.sizes
        if self.module.partitions < math.prod(self.mesh.sizes):
            first //= self.mesh.slices
        return (first, *others)

    def _across(self, groups, sizes: tuple[int, ...]) -> bool:
        if self.mesh.slices == 1 or sizes != self.mesh.sizes:
            return False
        slices = groups // (math.prod(sizes) // self.mesh.slices)
        return bool((slices != slices[:, :1]).any())

    def _between_slices(self, computation: Computation, i: Instruction) -> Collective | None:
        """Of an array that is handed to the host, which sends it to the same devices of the other slices."""
        kind = i.attribute(r'_xla_megascale_transfer_type="(\w+)"').lower().replace("_", "-")
        if not kind:
            return None
        kind = "collective-permute" if kind == "one-to-one" else kind
        array = computation.instructions[i.operands[0]].arrays[0]
        payload = array.nbytes * (self.mesh.slices if kind == "all-gather" else 1)
        return Collective(kind, self.mesh.axes[:1], True, self.mesh.slices, payload, array.dtype, array.dims, i.op_name)

    # Through main memory.

    def _moved(self, computation: Computation, i: Instruction) -> int:
        if i.opcode == "fusion":
            inside = self.module.computations[i.calls]
            reads = sum(
                self._read(inside, inside.parameters[n], _there(computation.instructions[name].arrays))
                for n, name in enumerate(i.operands)
            )
            return reads + self._written(inside, inside.root)
        operands = [_there(computation.instructions[name].arrays) for name in i.operands]
        if i.opcode == "custom-call" and "AllocateBuffer" in i.text:
            return 0
        result, opcode = _there(_result(i)), i.opcode.removesuffix("-start")
        if opcode in _SLICES:
            return result + min(operands[0], _all(_result(i))) + sum(operands[1:])
        if opcode == "dynamic-update-slice":
            return min(operands[0], _all(computation.instructions[i.operands[1]].arrays)) + sum(operands[1:])
        if opcode == "scatter":
            arrays = (len(operands) - 1) // 2
            return 3 * sum(operands[arrays + 1 :]) + operands[arrays]
        return sum(operands) + result

    def _read(self, inside: Computation, name: str, whole: int) -> int:
        """How much of a parameter, `whole` bytes in main memory, a fusion reads."""
        total = 0
        for user in inside.users.get(name, ()) if whole else ():
            if user.opcode in _SLICES and user.operands[0] == name:
                total += _all(user.arrays)
            elif user.opcode in ("bitcast", "reshape") or self._is_view(user):
                total += self._read(inside, user.name, whole)
            elif user.opcode == "fusion":
                called = self.module.computations[user.calls]
                places = [n for n, operand in enumerate(user.operands) if operand == name]
                total += sum(self._read(called, called.parameters[n], whole) for n in places)
            elif user.opcode == "tuple" or (user.opcode == "dynamic-update-slice" and user.operands[0] == name):
                continue
            else:
                return whole
        return min(total, whole)

    def _is_view(self, i: Instruction) -> bool:
        """Whether a fusion within a fusion says no more than that its operand is tiled in another way: int8 weights."""
        if i.opcode != "fusion" or "output_to_operand_aliasing={{}: (0, {})}" not in i.text:
            return False
        called = self.module.computations[i.calls]
        root = called.instructions[called.root]
        return root.opcode == "copy" and called.instructions[root.operands[0]].opcode == "parameter"

    def _written(self, inside: Computation, name: str) -> int:
        """How much of its result a fusion writes."""
        i = inside.instructions[name]
        if i.opcode == "tuple":
            return sum(self._written(inside, operand) for operand in i.operands)
        if i.opcode == "parameter":
            return 0
        behind = i
        while behind.opcode in _WRAPPED or behind.opcode == "fusion":
            if behind.opcode == "fusion":
                called = self.module.computations[behind.calls]
                if called.instructions[called.root].opcode != "dynamic-update-slice":
                    break
                return min(_there(i.arrays), self._written(called, called.root))
            behind = inside.instructions[behind.operands[0]]
        if behind.opcode == "dynamic-update-slice":
            return min(_there(i.arrays), _all(inside.instructions[behind.operands[1]].arrays))
        return _there(i.arrays)


def _result(i: Instruction) -> tuple[Array, ...]:
    """What an instruction makes; of the first half of one in two, what will be made."""
    if not i.opcode.endswith("-start"):
        return i.arrays
    if i.opcode == "copy-start":
        return i.arrays[:1]
    made = [x for x in i.arrays if x.dims and x.dtype not in ("u32", "s32")] or list(i.arrays)
    if i.opcode == "all-reduce-start":
        return tuple(made)
    return tuple(made[len(i.operands) :][: len(i.operands)] or made)


def _there(of: tuple[Array, ...]) -> int:
    """Bytes in main memory."""
    return sum(x.padded_bytes for x in of if not x.space)


def _all(of: tuple[Array, ...]) -> int:
    return sum(x.padded_bytes for x in of)
