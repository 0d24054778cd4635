"""`mgie bench`: how long edits and training steps take here, stage by stage, and beside PyTorch."""

import argparse
import json
import os
import re
import sys

from tqdm import tqdm

from mgie_jax.cli.edit import QUANTIZE
from mgie_jax.paths import argument

HELP = "measure an edit or a training step on this machine"
# Repeated from mgie_jax.bench, which would bring JAX in before the arguments are checked.
WHAT = ("edit", "train", "stages")
PEERS = ("torch", "torch-eager")
ROUNDS = 7
EXAMPLES = """examples:
  mgie bench stages --model mgie_7b_jax --dtype bfloat16
  mgie bench stages --config configs/default.py --peer torch --plot stages.png
  mgie bench stages --config configs/default.py --only unet,vae --peer torch-eager
  mgie bench edit --config configs/mgie_7b.py --batch 8 --steps 20 --peer torch --json
  mgie bench train --config configs/default.py:64 --peer torch

Weights are random where there is no model directory, photos and texts in any case, and everything is drawn from fixed
seeds. All that is measured takes turns, round by round; the rates of a large matmul and a large copy, measured in the
same rounds, say how much of the machine is used. --peer runs the same in PyTorch (transformers, diffusers) in processes
of its own, eager and compiled, after comparing what it computes: pip install 'mgie_jax[bench]'.

Any value of the config can be set as --config.NAME=VALUE.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this command's arguments on its parser."""
    parser.description = "Time an edit, its stages or a training step, and what they are of what this machine can do."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=WHAT, help="a whole edit, a joint training step, or the stages of an edit")
    parser.add_argument("--config", metavar="FILE", help="a file with get_config(), as for `mgie train`")
    parser.add_argument("--model", metavar="DIR", type=argument, help="a model directory, in place of random weights")
    parser.add_argument("--peer", choices=PEERS, help="measure PyTorch beside; compiling it takes minutes")
    parser.add_argument("--batch", metavar="N", type=int, help="photos at once (default: 1), or examples of a step")
    parser.add_argument("--steps", metavar="N", type=int, help="of denoising (default: the model's)")
    parser.add_argument("--size", metavar="HxW", help="of the photos in pixels (default: the model's resolution)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"),
                        help="of weights and arithmetic (default: the config's compute_dtype)")  # fmt: skip
    parser.add_argument("--quantize", choices=QUANTIZE, help="of an edit, as `mgie edit` has it")
    parser.add_argument("--rounds", metavar="N", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument("--only", metavar="NAME,NAME", help="these stages alone")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of text")
    parser.add_argument("--plot", metavar="FILE", type=argument, help="draw the figures, too: .png, .svg or .pdf")
    parser.set_defaults(takes_more=True)


def run(args: argparse.Namespace) -> int:
    """Measure. Raises ValueError for a config, model, stage or number that will not do, or for a missing package."""
    size = None if args.size is None else _size(args.size)
    if args.config is None and args.model is None:
        raise ValueError("give --config FILE, or --model DIR for an edit of a model directory")
    if args.config is None and args.what == "train":
        raise ValueError("give --config FILE: it says what a training step is")
    if args.model is not None and not args.model.is_dir():
        raise ValueError(f"{args.model}: there is no such model directory")
    if args.config is None and args.more:
        raise ValueError(f"unknown arguments without --config: {' '.join(args.more)}")
    if args.peer:  # on a GPU JAX would take most of the memory before the peer comes
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    config = _config(args)

    from mgie_jax.compilation import enable_compilation_cache

    enable_compilation_cache()
    from mgie_jax.bench import measure, plot, report

    request = measure.Request(
        what=args.what, config=config, name=args.config or str(args.model), peer=args.peer,
        batch=1 if args.batch is None else args.batch, steps=args.steps, size=size,
        dtype=config.compute_dtype, rounds=args.rounds, only=tuple(args.only.split(",")) if args.only else (),
        quantize=args.quantize,
    )  # fmt: skip
    measure.check(request)
    if args.plot:
        plot.check(args.plot)
    with _Bar() as bar:
        found = measure.measure(request, bar)
    if args.plot:
        plot.draw(found, args.plot)
    if args.json:
        print(json.dumps(found.to_json()))
        return 0
    print(report.text(found))
    if args.plot:
        print(f"Picture: {args.plot}")
    return 0


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise ValueError(f"--size {text}: give height and width in pixels, such as 512x512")
    return int(found[1]), int(found[2])


def _config(args: argparse.Namespace):
    """That of the file, or an empty one's, with what the flags say put in."""
    from mgie_jax.cli.train import read_config
    from mgie_jax.train.config import default_config

    config = default_config() if args.config is None else read_config(args.config, args.more)
    with config.unlocked():
        if args.model is not None:
            config.init = str(args.model)
        if args.dtype is not None:
            config.compute_dtype = args.dtype
        if args.what == "train" and args.batch is not None:
            config.batch_size = args.batch
    return config


class _Bar:
    """Says on standard error what is going on, and counts the laps."""

    def __init__(self):
        self._bar = tqdm(total=0, unit="lap", file=sys.stderr, dynamic_ncols=True, desc="bench", mininterval=1)

    def __call__(self, done: int, total: int, name: str) -> None:
        self._bar.total = total
        self._bar.set_postfix_str(name, refresh=False)
        self._bar.n = done
        self._bar.refresh()

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
