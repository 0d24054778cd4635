"""`mgie export`: a checkpoint of a training run as a model directory."""

import argparse
import json
import time

from mgie_jax.paths import argument, files

HELP = "make a model directory of a training checkpoint"
DTYPES = ("float32", "float16", "bfloat16")
EXAMPLES = """examples:
  mgie export out/joint model
  mgie export out/joint model-400 --step 400 --no-ema --dtype bfloat16
  mgie edit photo.jpg "make it warmer" --model model

diffusers and transformers load the folders of OUT; `mgie convert to-official OUT ...` makes the released code's files.
Equal parameters give equal files. What was frozen is copied from the model the run began with.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this command's arguments on its parser."""
    parser.description = "Make a model directory of any checkpoint of a training run, also while it goes on."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("workdir", metavar="WORKDIR", type=argument, help="the work folder of `mgie train`")
    parser.add_argument("output", metavar="OUT", type=argument, help="the model directory to make")
    parser.add_argument("--step", metavar="N", type=int, help="which checkpoint (default: the newest)")
    parser.add_argument(
        "--ema", action=argparse.BooleanOptionalAction, help="take the averaged weights (default: where there are any)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="", help="of the tensors (default: config.export_dtype)")
    parser.add_argument("--init", metavar="DIR", type=argument, help="the model that the run began with, if moved")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it is a model directory")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Write the model directory. Raises ValueError (also as ModelDirError) for whatever the user can mend."""
    from mgie_jax.weights.atomic import is_there

    there = is_there(args.output, "model_index.json")
    if there and not args.overwrite:
        raise ValueError(f"{args.output} exists already; choose another name, or --overwrite it")
    if there and not (args.output / "model_index.json").is_file():
        raise ValueError(f"{args.output} is no model directory; --overwrite will not remove it")
    if not args.workdir.is_dir():
        raise ValueError(f"{args.workdir}: there is no such folder")
    from mgie_jax.train.checkpoint import read_config, read_weights, steps
    from mgie_jax.train.export import export

    begun = time.perf_counter()
    saved = steps(args.workdir)
    step = saved[-1] if args.step is None and saved else args.step  # named, since a running run may write another
    config = read_config(args.workdir, step)
    ema = config.ema_decay > 0 if args.ema is None else args.ema
    weights = read_weights(args.workdir, step, ema)
    try:
        export(config, args.workdir, weights, args.output, init=args.init, dtype=args.dtype, overwrite=args.overwrite)
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename or error}: there is no such file or folder") from error
    answer = {
        "output": str(args.output),
        "step": step,
        "ema": ema,
        "dtype": args.dtype or config.export_dtype,
        "bytes": sum(entry.size for entry in files(args.output).values()),
        "seconds": round(time.perf_counter() - begun, 3),
    }
    if args.json:
        print(json.dumps(answer))
        return 0
    what = f"step {step}{', averaged weights' if ema else ''}, {answer['dtype']}"
    print(f"Written: {args.output} ({what}, {answer['bytes'] / 1e6:,.1f} MB in {answer['seconds']:.1f} s)")
    return 0
