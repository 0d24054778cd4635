"""`mgie plan`: whether a run fits a machine and how fast it can be there, before the machine is rented."""

import argparse
import json
import sys
import threading
import time

from tqdm import tqdm

from mgie_jax.cli.edit import QUANTIZE
from mgie_jax.cli.mesh import mesh_sizes
from mgie_jax.paths import argument

HELP = "compile a run for machines that need not be there"
DOES_NOT_FIT = 3
EVERY_S = 30  # seconds between signs of life where standard error is no terminal
EXAMPLES = """examples:
  mgie plan --config configs/mgie_7b.py --topology v5e:4x4 --mesh fsdp=16
  mgie plan --config configs/mgie_7b.py --topology v5e:4x4 --slices 2 --mesh data=2,fsdp=16 --html plan.html
  mgie plan --config configs/mgie_7b.py --mode edit --topology v6e:1x1 --batch 1
  mgie plan --config configs/mgie_7b.py --mode edit --topology v5e:1x1 --mesh 1,1,1 --quantize int8
  mgie plan --config configs/mgie_7b.py --topology v5p:2x2x4 --config.accumulate=2 --config.remat=dots --json
  mgie plan --config configs/mgie_7b.py --topology h200:8 --sweep

TOPOLOGY is a machine and the chips of a slice: v4, v5p and v7x as 2x2x1 to 16x16x16, v5e and v6e as 1x1 to 16x16; or
GPUs and their number in a node: a100:8, h100:8, h200:8. The very programs of `mgie train`, `mgie edit` and `mgie
prepare` are compiled, by the TPU compiler (pip install 'mgie_jax[tpu]'; any Linux machine will do); no weights are
made. For GPUs, XLA's compiler for the CPU stands in, and memory is an estimate.

Any value of the config can be set as --config.NAME=VALUE. If the run does not fit, the smallest change that makes it
fit is looked for by compiling, which may take as long again several times.

exit codes beside 0, 1 and 2: 3 where it does not fit.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this command's arguments on its parser."""
    parser.description = "Compile a run ahead of time: does it fit, how fast can it be at best, what limits it?"
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", metavar="FILE", required=True, help="a file with get_config(), as for `mgie train`")
    parser.add_argument("--mode", choices=("train", "edit", "prepare"), default="train", help="default: train")
    parser.add_argument("--topology", metavar="NAME", required=True, help="such as v5e:4x4, v5p:2x2x4 or h200:8")
    parser.add_argument("--slices", metavar="N", type=int, default=1,
                        help="how many of them, joined by the data-centre network (default: 1)")  # fmt: skip
    parser.add_argument("--mesh", metavar="SIZES", help="data=1,fsdp=16,tensor=1, or 1,16,1 (default: config.mesh)")
    parser.add_argument("--batch", metavar="N", type=int,
                        help="examples at once, on all devices (default: the config's; 1; 16)")  # fmt: skip
    parser.add_argument("--hbm-gib", metavar="GIB", type=float,
                        help="memory of a device that the run may have (default: all there is)")  # fmt: skip
    parser.add_argument("--quantize", choices=QUANTIZE, help="of an edit, as `mgie edit` has it")
    parser.add_argument("--effort", choices=("quick", "full"), default="quick",
                        help="of the compiler; full is what a run has, and takes several times as long")  # fmt: skip
    parser.add_argument("--no-advice", dest="advice", action="store_false",
                        help="do not look for a change that makes it fit")  # fmt: skip
    parser.add_argument("--sweep", action="store_true",
                        help="try meshes, microbatches and remat policies, rank what fits")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--html", metavar="FILE", type=argument, help="write the report as a page, too")
    parser.set_defaults(takes_more=True)


def run(args: argparse.Namespace) -> int:
    """Plan. Raises ValueError for a config, topology, mesh or batch that will not do, or where libtpu is missing."""
    from mgie_jax.cli.train import read_config
    from mgie_jax.plan.ahead import Request
    from mgie_jax.plan.machines import parse_topology, require_compiler
    from mgie_jax.plan.plan import Plan, make_plan

    if args.hbm_gib is not None and args.hbm_gib <= 0:
        raise ValueError(f"--hbm-gib must be above 0, not {args.hbm_gib}")
    if args.batch is not None and args.batch < 1:
        raise ValueError(f"--batch must be at least 1, not {args.batch}")
    if args.quantize and args.mode != "edit":
        raise ValueError(f"--quantize is of an edit, not of --mode {args.mode}")
    if args.sweep and args.html:
        raise ValueError("--html shows one plan; sweep first, then plan the setting you like")
    require_compiler(parse_topology(args.topology, args.slices))
    config = json.loads(read_config(args.config, args.more).to_json())
    mesh = mesh_sizes(args.mesh) if args.mesh else tuple(config["mesh"])
    request = Request(config, args.mode, args.topology, args.slices, mesh, args.batch, args.effort, args.quantize)

    def attempt(request: Request) -> Plan:
        shown = f"{request.topology}, mesh {','.join(map(str, request.mesh))}"
        with _Clock() as clock:
            return make_plan(request, args.hbm_gib, lambda name: clock(f"compiling {name} for {shown}"))

    return _sweep(args, request) if args.sweep else _plan(args, request, attempt)


def _plan(args: argparse.Namespace, request, attempt) -> int:
    from mgie_jax.plan.advise import smallest_change
    from mgie_jax.plan.page import page
    from mgie_jax.plan.report import held, text
    from mgie_jax.weights.atomic import write_text

    plan = attempt(request)
    found, advice = None, ""
    if not plan.fits and args.advice:
        found = smallest_change(plan, attempt)
        advice = "No change of microbatch, remat policy, fsdp or slice that was tried makes it fit."
        if found:
            needs = held(found[1].largest.memory.total)
            advice = f"The smallest change found that makes it fit: {found[0].flags} ({needs} a device)"
    if args.html:
        write_text(args.html, page(plan, args.config, advice))
    if args.json:
        change = {"flags": found[0].flags, "total_bytes": found[1].largest.memory.total} if found else None
        print(json.dumps({"config": args.config, **plan.to_json(), "change": change}))
    else:
        print("\n".join(filter(None, [text(plan, args.config), advice])))
        if args.html:
            print(f"Page: {args.html}")
    return 0 if plan.fits else DOES_NOT_FIT


def _sweep(args: argparse.Namespace, request) -> int:
    from mgie_jax.plan.ahead import CompilerFailed, Request
    from mgie_jax.plan.machines import parse_topology
    from mgie_jax.plan.plan import Plan, make_plan
    from mgie_jax.plan.report import ranking
    from mgie_jax.plan.sweep import sweep

    with tqdm(unit="setting", file=sys.stderr, dynamic_ncols=True, desc="sweep") as bar:

        def progress(done: int, total: int, name: str) -> None:
            bar.total = total
            bar.set_postfix_str(name, refresh=False)
            bar.update(done - bar.n)
            bar.refresh()

        def attempt(request: Request) -> Plan:
            try:
                return make_plan(request, args.hbm_gib)
            except CompilerFailed as error:  # such as out of memory: others may still be compiled
                bar.write(f"mgie plan: mesh {','.join(map(str, request.mesh))}: {error}", file=sys.stderr)
                raise ValueError(str(error)) from error

        plans = sweep(request, attempt, progress, fixed=args.mesh is not None)
    topology = parse_topology(args.topology, args.slices)
    if args.json:
        print(json.dumps({"config": args.config, "plans": [plan.to_json() for plan in plans]}))
    elif plans:
        print(f"{args.mode} of {args.config} on {topology}: {topology.devices} x {topology.machine.name}")
        print(ranking(plans))
    else:
        print(f"Nothing that was tried fits {topology}.")
    return 0 if plans else DOES_NOT_FIT


class _Clock:
    """Says on standard error what is going on and for how long: in place on a terminal, else every now and then."""

    def __init__(self):
        self._text, self._start, self._over = "starting the compiler", time.monotonic(), threading.Event()
        self._terminal = sys.stderr.isatty()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __call__(self, text: str) -> None:
        self._text = text
        self._say("\r\x1b[K" if self._terminal else "", "" if self._terminal else "\n")

    def _run(self) -> None:
        while not self._over.wait(1 if self._terminal else EVERY_S):
            self._say("\r\x1b[K" if self._terminal else "", "" if self._terminal else "\n")

    def _say(self, before: str, after: str) -> None:
        elapsed = int(time.monotonic() - self._start)
        shown = f"{before}mgie plan: {self._text}, {elapsed // 60}:{elapsed % 60:02}"
        print(shown, end=after, file=sys.stderr, flush=True)

    def __enter__(self) -> "_Clock":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
