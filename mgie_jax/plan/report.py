"""A plan in words and tables, for a terminal; `page` shows the same tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mgie_jax.plan.buffers import Buffer
from mgie_jax.plan.facts import Memory
from mgie_jax.plan.plan import Plan
from mgie_jax.plan.roofline import BOUNDS, flow_seconds

ESTIMATE = (
    "An estimate: arguments are exact; temporaries, traffic and collectives are those of XLA's compiler for the CPU, "
    "which fuses less than the GPU's."
)
QUICK = (
    "Compiled with the compiler's least effort: temporaries and bytes through HBM are upper figures. With --effort "
    "full, as a run is compiled, more stays on the chip."
)
LOOPS = "Loops of {} that end when the last answer does are counted as {} turns, the most there can be."
PARTS, SHOWN, BUFFERS = 8, 8, 10  # of the arguments, of long lists, and of buffers
UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; `sides` has "<" for each column of words and ">" for each of numbers."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    sides: str


def text(plan: Plan, config: str) -> str:
    """The whole report; `config` is what the user called it."""
    lines = [title(plan, config), plan.setting, *notes(plan)]
    for table in tables(plan):
        lines += ["", table.title, *(f"  {line}" for line in aligned([table.head, *table.rows], table.sides))]
    return "\n".join([*lines, "", best(plan), verdict(plan)])


def title(plan: Plan, config: str) -> str:
    """What was planned, and for which machine."""
    return f"{plan.request.mode} of {config} on {plan.topology}: {plan.topology.devices} x {plan.topology.machine.name}"


def notes(plan: Plan) -> list[str]:
    """What to keep in mind."""
    said = [ESTIMATE] if plan.topology.machine.estimated else [QUICK] if plan.request.effort == "quick" else []
    return said + [LOOPS.format(facts.name, facts.while_turns) for facts in plan.facts if facts.while_turns]


def best(plan: Plan) -> str:
    """How fast it can be, and what it then waits for."""
    rate = plan.facts[0].examples / plan.seconds if plan.seconds else 0.0
    shown = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    bound = bounds(plan)[plan.bound]
    return f"At best {seconds(plan.seconds)} a batch, {shown} examples/s; bound by {bound}; MFU {percent(plan.mfu)}"


def verdict(plan: Plan) -> str:
    """Whether it fits, in a line."""
    total, has = plan.largest.memory.total, plan.hbm_bytes
    of = f"{held(total)} of {held(has)} a device"
    if plan.fits:
        return f"It fits: {of}, {held(has - total)} to spare."
    refused = next((facts.refused for facts in plan.facts if facts.refused), "")
    return f"It does not fit: {of}. {refused}".rstrip()


def tables(plan: Plan) -> list[Table]:
    """All there is to tell; empty tables left out."""
    names = tuple(facts.name for facts in plan.facts)
    sides = "<" + ">" * len(names)
    return [
        table
        for table in (
            _times(plan),
            Table("Memory of a device", ("", *names), tuple(_memory(plan)), sides),
            Table("Arguments by part", ("", *names), tuple(_arguments(plan)), sides),
            Table("Largest buffers; of temporaries those that are alive at once where most are",
                  ("", "", "of", "", "path or operation"), tuple(_buffers(plan)), "><<<<"),
            Table("Work of a device for a batch", ("", *names), tuple(_work(plan)), sides),
            Table("Collectives for a batch: what they are about, what a device sends, and how long that takes at best",
                  ("of", "", "over", "by", "number", "payload", "sent", "at best"), tuple(_collectives(plan)),
                  "<<<<>>>>"),
            Table("Collectives that send most", ("sent", "number", "of", "", "", "operation"),
                  tuple(_exchanges(plan)), ">><<<<"),
            Table("Operations that move most through HBM", ("bytes", "of", "operation"), tuple(_moves(plan)), "><<"),
        )
        if table.rows
    ]  # fmt: skip


def ranking(plans: Sequence[Plan]) -> str:
    """What a sweep has found, as a table."""
    rows = [("", "mesh", "remat", "accumulate", "memory", "best", "bound", "MFU")]
    for n, plan in enumerate(plans, 1):
        train = plan.request.mode == "train"
        policy, parts = (plan.request.config["remat"], str(plan.request.config["accumulate"])) if train else ("-", "-")
        mesh = ",".join(str(size) for size in plan.facts[0].mesh.values())
        memory, bound = held(plan.largest.memory.total), bounds(plan)[plan.bound]
        rows.append((str(n), mesh, policy, parts, memory, seconds(plan.seconds), bound, percent(plan.mfu)))
    return "\n".join(aligned(rows, "><<>>><>"))


def bounds(plan: Plan) -> dict[str, str]:
    """What the fields of a roofline are called."""
    return dict(zip(BOUNDS, ("compute", "HBM", plan.topology.machine.fabric, "DCN"), strict=True))


def _times(plan: Plan) -> Table:
    names = bounds(plan)
    head = ("", "runs", "memory", "best", "bound", *names.values(), "MFU", "traced", "compiled")
    rows = []
    for facts, line in zip(plan.facts, plan.rooflines, strict=True):
        times = (seconds(getattr(line, key)) if getattr(line, key) else "-" for key in names)
        took = (f"{facts.trace_s:.0f} s", f"{facts.compile_s:.0f} s")
        rows.append((facts.name, str(facts.runs), held(facts.memory.total), seconds(line.seconds), names[line.bound],
                     *times, percent(line.mfu), *took))  # fmt: skip
    return Table("Programs: each with its best time for a batch", head, tuple(rows), "<>>><>>>>>>>")


def _memory(plan: Plan) -> Iterator[tuple[str, ...]]:
    rows = {
        "arguments": lambda memory: memory.arguments,
        "arguments that are not read": lambda memory: memory.unread,
        "outputs": lambda memory: memory.outputs,
        "outputs in arguments' memory": lambda memory: -memory.aliased,
        "temporaries": lambda memory: memory.temporaries,
        "the program itself": lambda memory: memory.code,
    }
    memories: list[Memory] = [facts.memory for facts in plan.facts]
    for name, of in rows.items():
        if any(map(of, memories)):
            yield name, *(held(of(memory)) for memory in memories)
    yield f"in all, of {held(plan.hbm_bytes)}", *(held(memory.total) for memory in memories)


def _arguments(plan: Plan) -> Iterator[tuple[str, ...]]:
    named = {name: max(f.parts.get(name, 0) for f in plan.facts) for facts in plan.facts for name in facts.parts}
    largest = sorted(named, key=lambda name: -named[name])[:PARTS]
    for name in largest:
        yield name, *(held(facts.parts[name]) if name in facts.parts else "-" for facts in plan.facts)
    rest = [sum(facts.parts.values()) - sum(facts.parts.get(name, 0) for name in largest) for facts in plan.facts]
    if any(rest):
        yield "all others", *map(held, rest)


def _buffers(plan: Plan) -> Iterator[tuple[str, ...]]:
    """Arguments that several programs have count once."""
    found: dict[tuple, tuple[Buffer, list[str]]] = {}
    for facts in plan.facts:
        for n, buffer in enumerate(facts.buffers):
            key = buffer.name if buffer.kind == "argument" else (facts.name, n)
            largest, of = found.get(key, (buffer, []))
            found[key] = (max(largest, buffer, key=lambda b: b.nbytes), [*of, facts.name])
    for buffer, of in sorted(found.values(), key=lambda one: -one[0].nbytes)[:BUFFERS]:
        yield held(buffer.nbytes), buffer.kind, ", ".join(of), _array(buffer.dtype, buffer.shape), buffer.name


def _work(plan: Plan) -> Iterator[tuple[str, ...]]:
    rows = {
        "FLOPs as compiled": lambda facts: number(facts.runs * facts.flops),
        "FLOPs if nothing is computed twice over devices": lambda facts: number(facts.runs * facts.shared_flops),
        "FLOPs of use to the model": lambda facts: number(facts.runs * facts.model_flops),
        "bytes through HBM": lambda facts: size(facts.runs * facts.hbm_bytes),
    }
    for name, of in rows.items():
        yield name, *map(of, plan.facts)


def _collectives(plan: Plan) -> Iterator[tuple[str, ...]]:
    machine = plan.topology.machine
    for facts in plan.facts:
        for flow in facts.flows:
            runs, by = facts.runs, "DCN" if flow.dcn else machine.fabric
            yield (
                facts.name, flow.kind, " and ".join(flow.axes) or "-", by, f"{runs * flow.count:,}",
                size(runs * flow.payload), size(runs * flow.sent), seconds(runs * flow_seconds(flow, machine)),
            )  # fmt: skip


def _exchanges(plan: Plan) -> Iterator[tuple[str, ...]]:
    every = [(facts, one) for facts in plan.facts for one in facts.exchanges]
    for facts, one in sorted(every, key=lambda pair: -pair[0].runs * pair[1].sent)[:SHOWN]:
        over = f"{one.kind} over {' and '.join(one.axes)}"
        sent, times = size(facts.runs * one.sent), f"{facts.runs * one.count:,}"
        yield sent, times, facts.name, over, _array(one.dtype, one.shape), one.op_name


def _moves(plan: Plan) -> Iterator[tuple[str, ...]]:
    every = [(facts.runs * moved, facts.name, name) for facts in plan.facts for name, moved in facts.moves]
    for moved, of, name in sorted(every, key=lambda one: -one[0])[:SHOWN]:
        yield size(moved), of, name


def _array(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"


def aligned(rows: Sequence[Sequence[str]], sides: str) -> Iterator[str]:
    """Rows in columns, as `Table` has them."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(sides))]
    for row in rows:
        cells = [
            cell.ljust(width) if side == "<" else cell.rjust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        ]
        yield "  ".join(cells).rstrip()


def held(nbytes: int | float) -> str:
    """Memory: 1.23 GiB and so on."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(nbytes) >= unit:
            return f"{nbytes / unit:.2f} {name}"
    return f"{nbytes:.0f} B"


def number(value: int | float) -> str:
    """1.23 T and so on."""
    for unit, name in UNITS:
        if abs(value) >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.3g}"


def size(nbytes: int | float) -> str:
    """Bytes on the way somewhere: 1.23 GB and so on."""
    return f"{number(nbytes)}B" if abs(nbytes) >= 1e3 else f"{nbytes:.0f} B"


def seconds(value: int | float) -> str:
    """A time: 1.23 ms and so on."""
    if value >= 1000:
        return f"{value:,.0f} s"
    for unit, name in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value / 1e-9:.3g} ns"


def percent(share: float) -> str:
    """A share of 1 as 12 %."""
    return f"{100 * share:.0f} %"
