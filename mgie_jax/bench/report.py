"""A report in words and a table, for a terminal."""

from mgie_jax.bench.clock import Spread
from mgie_jax.bench.measure import Report, Row
from mgie_jax.bench.stages import TITLES
from mgie_jax.plan.report import aligned, held, number, percent, seconds, size

NOTES = (
    "Times are medians with the quartiles around them; ratios are our time over the peer's, taken round by round.\n"
    "FLOPs are those of products and convolutions, bytes what must move at least: weights and inputs read, outputs\n"
    "written, once each; roofline is the time that these take at the rates of the matmul and the copy, whichever is\n"
    "longer, as a share of the time taken."
)


def text(report: Report) -> str:
    """The whole report."""
    rates, found = report.rates, report.machine
    device = f"{found['device']} ({found['platform']}, {found['cores']} cores)"
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        title(report), f"{device}; {versions}",
        f"Large matmul {number(rates.flops)}FLOP/s, large copy {size(rates.bytes)}/s", "",
    ]  # fmt: skip
    peers = list(dict.fromkeys(name for row in report.rows for name in row.peers))
    head = ("", "", "time", "quartiles", "FLOPs", "bytes", "roofline", "bound")
    head += tuple(column for name in peers for column in (name, "ratio", "quartiles"))
    table = [head, *(_cells(row, peers) for row in report.rows)]
    lines += [f"  {line}" for line in aligned(table, "<<>>>>><" + ">>>" * len(peers))]
    lines += [""]
    for name, of in report.memory.items():
        running = f"{held(of['running'])} at most, " if of.get("running") else ""
        lines += [f"Memory of {name}: {running}{held(of['peak'])} since it began, compiling included"]
    return "\n".join([*lines, *report.remarks, NOTES])


def title(report: Report) -> str:
    """What was measured."""
    asked, sampling = report.request, report.request["sampling"]
    numbers = asked["dtype"] + (f", {asked['quantize']}" if asked.get("quantize") else "")
    shown = f"{asked['what']} of {asked['config']}, {numbers}, batch {asked['batch']}"
    if asked["what"] != "train":
        height, width = asked["size"] or (sampling["resolution"], sampling["resolution"])
        shown += f", {height} x {width} pixels, {sampling['steps']} steps of {sampling['sampler']}"
    return f"{shown}; {asked['rounds']} rounds"


def _cells(row: Row, peers: list[str]) -> tuple[str, ...]:
    counted = row.flops is not None
    cells = [row.name, TITLES.get(row.name, ""), _time(row.seconds.median), _quartiles(row.seconds)]
    cells += [number(row.flops), size(row.bytes), percent(row.share), row.bound] if counted else ["-"] * 4
    for name in peers:
        beside = row.peers.get(name)
        if beside is None:
            cells += ["-"] * 3
        else:
            ratio = beside.ratio
            cells += [_time(beside.seconds.median), f"{ratio.median:.2f}", f"{ratio.low:.2f} to {ratio.high:.2f}"]
    return tuple(cells)


def _quartiles(spread: Spread) -> str:
    return "-" if spread.low == spread.high else f"{_time(spread.low)} to {_time(spread.high)}"


def _time(value: float) -> str:
    """One that is a difference may come out below zero."""
    return seconds(value) if value >= 0 else f"-{seconds(-value)}"
