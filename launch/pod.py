"""What the launchers of Google Cloud share: the slices they can ask for, and how a command line is read.

A slice is named as `mgie plan` names it: v5e:4x4. The names and numbers are those of Cloud TPU's and GKE's reference.
"""

import argparse
import re
from dataclasses import dataclass
from math import prod
from typing import NoReturn

PLANES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SMALL_CUBOIDS = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # all others have edges that are multiples of 4


@dataclass(frozen=True)
class Generation:
    """One generation of TPUs."""

    axes: int
    accelerator: str  # GKE's label cloud.google.com/gke-tpu-accelerator
    machine: str  # GKE's machine type, with the number of chips to be filled in
    type: str  # of TPU VMs
    runtime: str | None  # software of TPU VMs; None: GKE alone has this generation


GENERATIONS = {
    "v4": Generation(3, "tpu-v4-podslice", "ct4p-hightpu-{}t", "v4", "tpu-ubuntu2204-base"),
    "v5e": Generation(2, "tpu-v5-lite-podslice", "ct5lp-hightpu-{}t", "v5litepod", "v2-alpha-tpuv5-lite"),
    "v5p": Generation(3, "tpu-v5p-slice", "ct5p-hightpu-{}t", "v5p", "v2-alpha-tpuv5"),
    "v6e": Generation(2, "tpu-v6e-slice", "ct6e-standard-{}t", "v6e", "v2-alpha-tpuv6e"),
    "v7x": Generation(3, "tpu7x", "tpu7x-standard-{}t", "tpu7x", None),
}


@dataclass(frozen=True)
class Slice:
    """Chips joined by their own interconnect, and the hosts they sit in."""

    generation: Generation
    shape: str  # "4x4"

    @property
    def chips(self) -> int:
        return prod(map(int, self.shape.split("x")))

    @property
    def chips_per_host(self) -> int:
        """In GKE; the TPU VM of a slice of 8 v5e or v6e chips has all of them, where nobody needs to know."""
        return min(self.chips, 4)

    @property
    def hosts(self) -> int:
        return self.chips // self.chips_per_host

    @property
    def machine(self) -> str:
        return self.generation.machine.format(self.chips_per_host)

    @property
    def tpu_vm_flags(self) -> list[str]:
        """What `gcloud compute tpus` is told. In three dimensions a number of chips has several shapes."""
        if self.generation.axes == 3:
            return [f"--type={self.generation.type}", f"--topology={self.shape}"]
        return [f"--accelerator-type={self.generation.type}-{self.chips}"]


def parse_slice(name: str) -> Slice:
    """The slice that "v5e:4x4" names. Raises argparse.ArgumentTypeError, which argparse shows, for any other name."""
    known, _, shape = name.partition(":")
    generation = GENERATIONS.get(known)
    if generation is None:
        raise argparse.ArgumentTypeError(f"{name!r}: write GENERATION:SHAPE; generations are {', '.join(GENERATIONS)}")
    if generation.axes == 2:
        if shape not in PLANES:
            raise argparse.ArgumentTypeError(f"{name!r}: shapes of {known} are {', '.join(PLANES)}")
    elif shape not in SMALL_CUBOIDS:
        edges = [int(edge) for edge in shape.split("x")] if re.fullmatch(r"\d+x\d+x\d+", shape) else [0]
        if edges != sorted(edges) or any(edge < 1 or edge % 4 for edge in edges):
            raise argparse.ArgumentTypeError(
                f"{name!r}: shapes of {known} are {', '.join(SMALL_CUBOIDS)}, and AxBxC with A <= B <= C, all of them "
                "multiples of 4"
            )
    return Slice(generation, shape)


def name(text: str) -> str:
    """A name that both Cloud TPU and Kubernetes take; pods add to it, and have 63 characters."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: up to 40 lower-case letters, digits and hyphens, first a letter and last no hyphen"
        )
    return text


def count(text: str) -> int:
    """A number of things, at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 up")
    return int(text)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line; with what all launchers take."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--name", type=name, required=True, help="of the TPUs and the run")
        self.add_argument("--topology", metavar="NAME", dest="slice", type=parse_slice, required=True,
                          help="the slice, as `mgie plan` names it: v5e:4x4")  # fmt: skip
        self.add_argument("--slices", metavar="N", type=count, default=1, help="how many of them (default: 1)")
        self.add_argument("--spot", action="store_true", help="ask for spot capacity: cheaper, taken away at any time")
        self.add_argument("--dry-run", action="store_true", help="print what would be run, and run nothing")
        self.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="after --: what every host runs")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see: {self.prog} --help)\n")

    def parse(self) -> argparse.Namespace:
        """The process's arguments; `command` tells every process of a run that it is one of several."""
        args = self.parse_args()
        command = args.command[1:] if args.command[:1] == ["--"] else args.command
        if not command or command[0].startswith("-"):
            self.error("give the command after --, as in: -- mgie train --config configs/mgie_7b.py ...")
        args.command = joined(command)
        return args


def joined(command: list[str]) -> list[str]:
    """The command, with the flag by which processes of `mgie train` or `mgie prepare` join each other."""
    flags = {"train": "--config.distributed=True", "prepare": "--distributed"}
    flag = flags.get(command[1]) if command[0] == "mgie" and len(command) > 1 else None
    given = flag is None or any(word.partition("=")[0] == flag.partition("=")[0] for word in command)
    return command if given else [*command, flag]
