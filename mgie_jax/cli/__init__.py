"""The `mgie` command. A subcommand is a module with `HELP`, `add_arguments(parser)` and `run(args) -> int`.

Exit codes: 0 done, 1 a fault of the program or the machine, 2 a mistake the user can mend, 130 interrupted; `train`
has two more, `plan` and `edit` one: 3, it does not fit, or some of many photos could not be edited.
Errors are one line on stderr; MGIE_DEBUG=1 shows the traceback instead.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from mgie_jax import __version__
from mgie_jax.cli import bench, convert, curves, data, edit, eval, export, plan, prepare, train, warmup

# Subcommands import what is heavy inside `run`, once their arguments are known to be good.
COMMANDS = {
    "edit": edit, "data": data, "prepare": prepare, "plan": plan, "train": train, "export": export, "curves": curves,
    "eval": eval, "bench": bench, "convert": convert, "warmup": warmup,
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would print its usage and leave, so that every error looks alike."""

    def error(self, message: str):
        raise ValueError(f"{message} (see: {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code."""
    # That there is no PyTorch is no news to its users: nothing but tokenizers is wanted of transformers.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        args = _parse(argv)
        return COMMANDS[args.command].run(args)
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:
        # A Ctrl-C that reaches Python inside a JAX callback comes back as JAX's own error.
        if "KeyboardInterrupt" in str(error):
            return _interrupted()
        if os.environ.get("MGIE_DEBUG") == "1":
            raise
        # ValueError is what this package raises for bad input; anything else is not the user's doing.
        if isinstance(error, ValueError):
            return _fail(str(error) or repr(error), 2)
        return _fail(f"{type(error).__name__}: {error} (set MGIE_DEBUG=1 for the traceback)", 1)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; those argparse does not know are `args.more` of a subcommand that takes them."""
    parser = _parser()
    args, more = parser.parse_known_args(argv)
    if more and not getattr(args, "takes_more", False):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    args.more = more
    return args


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mgie",
        description="Edit photos by instruction (MGIE in JAX).",
        epilog="`mgie COMMAND --help` shows a command's arguments and examples.",
    )
    parser.add_argument("--version", action="version", version=f"mgie {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP))
    return parser


def _fail(message: str, code: int) -> int:
    print("mgie: error: " + " ".join(message.split()), file=sys.stderr)
    return code


def _interrupted() -> int:
    print("\nmgie: interrupted", file=sys.stderr)
    return 130
