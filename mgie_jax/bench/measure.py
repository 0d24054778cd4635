"""Everything timed in one run: ours, the peers' and the machine's rates take turns, round after round."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections

from mgie_jax.bench import clock, cold, compare, edits, host, machine, memory, peer, stages, training
from mgie_jax.bench.case import Case, make_case
from mgie_jax.bench.clock import Lap, Spread
from mgie_jax.bench.inputs import source
from mgie_jax.bench.stages import Work
from mgie_jax.models import quantize

OURS = "jax"
WHAT = ("edit", "train", "stages")
NAMES = tuple(stages.TITLES)
Progress = Callable[[int, int, str], None]
"""(laps done, laps in all, what is going on)"""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        what: one of `WHAT`.
        config: of `mgie train`; for an edit and its stages only its `init` or `model` counts.
        name: what the user called it.
        size: height and width of photos.
        only: stages; all where empty.
        quantize: of an edit and its stages, as `loading.load` has it.
    """

    what: str
    config: ml_collections.ConfigDict
    name: str
    peer: str | None = None
    batch: int = 1
    steps: int | None = None
    size: tuple[int, int] | None = None
    dtype: str = "float32"
    rounds: int = 7
    only: tuple[str, ...] = ()
    quantize: str | None = None


@dataclass(frozen=True)
class Beside:
    """What a peer took for the same.

    Attributes:
        ratio: our time over its time, round by round.
        error: how far its outputs are from ours, relative.
    """

    seconds: Spread
    ratio: Spread
    error: float


@dataclass(frozen=True)
class Row:
    """One thing that was timed; times, FLOPs and bytes are of a unit (`stages.Work`)."""

    name: str
    seconds: Spread
    flops: float | None = None
    bytes: float | None = None
    share: float | None = None
    bound: str | None = None
    peers: dict[str, Beside] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What was measured, on what.

    `memory` has by contestant the peak bytes of an edit or a step (`memory.resident`; an accelerator's where there is
    one): "peak", all that came before and compiling included, and "running", where that can be told apart.
    """

    request: dict
    machine: dict
    rates: machine.Rates
    rows: list[Row]
    memory: dict[str, dict[str, int]]
    remarks: list[str]

    def to_json(self) -> dict:
        return {**self.request, "machine": self.machine, "rates": asdict(self.rates),
                "rows": [asdict(row) for row in self.rows], "memory": self.memory, "remarks": self.remarks}  # fmt: skip


def check(request: Request) -> None:
    """Raises ValueError for what cannot be measured, before anything is made."""
    for name, value in (("--batch", request.batch), ("--rounds", request.rounds), ("--steps", request.steps)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    for name in request.only:
        if name not in NAMES:
            raise ValueError(f"there is no stage {name!r}; choose among {', '.join(NAMES)}")
    if request.only and request.what != "stages":
        raise ValueError(f"--only chooses among stages; `mgie bench {request.what}` measures one thing")
    quantize.check(request.quantize)
    if request.quantize and (request.peer or request.what == "train" or set(request.only) & set(cold.COLD)):
        raise ValueError(f"--quantize is of edits, without a peer; it leaves {', '.join(cold.COLD)} out")
    if request.what == "train":
        if request.steps is not None or request.size is not None:
            raise ValueError("--steps and --size are of edits; give training --config.image_size=PIXELS")
        training.check(request.config)
    if request.peer is not None:
        peer.require(request.peer)


def measure(request: Request, progress: Progress = lambda done, total, name: None) -> Report:
    """Checks that all peers compute the same, then times everything.

    Raises:
        ValueError: see `check`; also a model directory or config that will not do.
        compare.Differ: a peer computes something else. Nothing has been timed.
        peer.PeerFailed: PyTorch's eager worker failed; where only the compiled one does, it is left out with a remark.
    """
    check(request)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mgie-bench-")))
        return _Run(request, folder, stack, progress).report()


class _Run:
    """One `measure`, as it goes on."""

    def __init__(self, request: Request, folder: Path, stack: ExitStack, progress: Progress):
        self.request, self.folder, self.stack, self.progress = request, folder, stack, progress
        self.remarks: list[str] = []
        self.errors: dict[tuple[str, str], float] = {}
        progress(0, 0, "making weights")
        self.source = source(request.config, request.size, request.steps)
        self.works = self._works()

    def _works(self) -> dict[str, Work]:
        request = self.request
        if request.what == "train":
            self.inputs = lambda: training.inputs(request.config, self.source)
            self.about = training.request(request.config, self.source)
            return {"train": training.work(request.config, self.source)}
        dtype = jnp.dtype(request.dtype)
        case = make_case(self.source, self.source.tokenizer(), dtype, request.size, request.batch, request.quantize)
        self.inputs = lambda: case.inputs | (edits.inputs(case) if request.what == "edit" else {})
        self.about = {"tokens": case.tokens, "special": asdict(edits.special(case))}
        if request.what == "edit":
            return {"edit": edits.work(case)}
        chosen = [name for name in NAMES if not request.only or name in request.only]
        return {name: self._stage(case, name) for name in chosen if name not in cold.COLD}

    def _stage(self, case: Case, name: str) -> Work:
        self.progress(0, 0, f"tracing {name}")
        return host.stage(case, name, self.folder) if name in host.HOST else stages.stage(case, name)

    def report(self) -> Report:
        request = self.request
        ours = {name: self._outputs(work) for name, work in self.works.items()}
        workers = self._workers(ours) if request.peer else []
        held = self._memory(workers) if request.what in self.works else {}
        probes = machine.probes(jnp.dtype(request.dtype))
        seconds = self._timed(workers, probes)
        rates = machine.Rates(*(probes[name][1] / Spread.of(seconds[name]).median for name in ("matmul", "copy")))
        rows = [self._row(work, workers, seconds, rates) for work in self.works.values()]
        for worker in workers:
            worker.close()
        rows += self._first_edits()
        asked = {
            "what": request.what, "config": request.name, "model": self.source.folder or request.config.model,
            "batch": request.config.batch_size if request.what == "train" else request.batch,
            "sampling": asdict(self.source.sizes.sampling), "size": request.size, "dtype": request.dtype,
            "rounds": request.rounds, "peer": request.peer, "quantize": request.quantize,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        rows.sort(key=lambda row: NAMES.index(row.name) if row.name in NAMES else 0)
        return Report(asked, machine.described(), rates, rows, held, self.remarks)

    def _outputs(self, work: Work) -> list[dict]:
        """What is compared: of training the first updates, of everything else one run. It compiles, too."""
        self.progress(0, 0, f"compiling {work.name}")
        if work.outputs is None:
            work.run()
            return []
        return [work.outputs() for _ in range(training.CHECKED if work.name == "train" else 1)]

    def _workers(self, ours: dict[str, list[dict]]) -> list[peer.Worker]:
        """Those that are there and compute the same."""
        request, names = self.request, [name for name, outputs in ours.items() if outputs]
        device = jax.devices()[0].platform
        about = {"what": request.what, "source": self.source.request, "dtype": request.dtype, "platform": device}
        peer.write_request(self.folder, {**about, "names": names, **self.about}, self.inputs())
        found = []
        for kind in peer.KINDS[request.peer]:
            try:
                self.progress(0, 0, f"starting {kind}")
                worker = peer.Worker(self.folder, kind)
                self.stack.callback(worker.close)
                for name in names:
                    self.progress(0, 0, f"comparing {name} with {kind}")
                    self._compare(worker, name, ours[name], device)
            except peer.PeerFailed as error:
                if not found:
                    raise
                self.remarks.append(f"left out: {error}")
                continue
            found.append(worker)
        return found

    def _compare(self, worker: peer.Worker, name: str, ours: list[dict], device: str) -> None:
        theirs = [worker.outputs(name) for _ in ours]
        try:
            if name == "train":
                losses = [[float(one["loss"]) for one in each] for each in (ours, theirs)]
                found, remark = compare.compare_losses(*losses, self.request.config.compute_dtype), ""
            else:
                found, remark = compare.compare(ours[0], theirs[0], self.request.dtype, device)
        except compare.Differ as error:
            raise compare.Differ(f"{name} of {worker.name}: {error}; nothing was timed") from error
        self.errors[name, worker.name] = found
        if remark:
            self.remarks.append(f"{name} of {worker.name}: {remark}")

    def _timed(self, workers: Sequence[peer.Worker], probes: dict) -> dict[str, list[float]]:
        laps: dict[str, Lap] = {}
        for name, work in self.works.items():
            laps[name] = clock.lap_of(work.run)
            if work.minus:
                laps[_less(name)] = clock.lap_of(work.minus)
            for worker in workers:
                if (name, worker.name) in self.errors:
                    laps[_of(name, worker)] = _remote(worker, name)
                    if work.minus:
                        laps[_less(_of(name, worker))] = _remote(worker, name, minus=True)
        laps |= {name: clock.lap_of(run) for name, (run, _) in probes.items()}
        total = len(laps) * self.request.rounds
        return clock.in_turn(laps, self.request.rounds, lambda done, name: self.progress(done, total, name))

    def _row(self, work: Work, workers: Sequence[peer.Worker], seconds: dict, rates: machine.Rates) -> Row:
        def per_unit(lap: str) -> list[float]:
            besides = seconds[_less(lap)] if work.minus else [0.0] * len(seconds[lap])
            return [(whole - part) / work.units for whole, part in zip(seconds[lap], besides, strict=True)]

        mine = per_unit(work.name)
        row = Row(work.name, Spread.of(mine), work.flops, work.bytes)
        if work.flops is not None:
            least = rates.seconds(work.flops, work.bytes)
            row = replace(row, share=least / row.seconds.median, bound=rates.bound(work.flops, work.bytes))
        beside = {}
        for worker in workers:
            if (work.name, worker.name) in self.errors:
                theirs = per_unit(_of(work.name, worker))
                far = self.errors[work.name, worker.name]
                beside[worker.name] = Beside(Spread.of(theirs), clock.ratio(mine, theirs), far)
        return replace(row, peers=beside)

    def _first_edits(self) -> list[Row]:
        request = self.request
        chosen = [name for name in cold.COLD if not request.only or name in request.only]
        if request.what != "stages" or not chosen or request.quantize:
            return []
        rounds = min(request.rounds, 3) if {"warm", "first", "again"} & set(chosen) else 0
        laps = cold.first_edits(
            self.source, request.dtype, rounds, lambda done, name: self.progress(done, 1 + rounds, name)
        )
        if {"first", "again"} <= set(chosen):
            ratio = clock.ratio(laps["first"], laps["again"])
            self.remarks.append(f"first edit / warm edit: {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})")
        return [Row(name, Spread.of(laps[name])) for name in chosen]

    def _memory(self, workers: Sequence[peer.Worker]) -> dict[str, dict[str, int]]:
        name = self.request.what
        self.progress(0, 0, "memory")
        told = jax.devices()[0].memory_stats()
        ours = {"peak": told["peak_bytes_in_use"]} if told else memory.resident(self.works[name].run)
        return {OURS: ours} | {worker.name: worker.memory(name) for worker in workers}


def _of(name: str, worker: peer.Worker) -> str:
    return f"{name} of {worker.name}"


def _less(lap: str) -> str:
    return f"{lap}, less"


def _remote(worker: peer.Worker, name: str, minus: bool = False) -> Lap:
    return lambda runs: worker.lap(name, runs, minus)
