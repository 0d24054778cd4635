"""`mgie warmup`: compile, once, what `mgie edit` is going to run."""

import argparse
import contextlib
import json
import re
import sys
import time

from tqdm import tqdm

import mgie_jax
from mgie_jax.cli.edit import QUANTIZE, SAMPLERS, add_scales, check_numbers
from mgie_jax.cli.mesh import mesh_sizes
from mgie_jax.paths import argument

HELP = "compile what edits run, so that none of them waits for it"
MAX_BATCH = 4096
EXAMPLES = """examples:
  mgie warmup
  mgie warmup --size 3x2 --size 4032x3024 --batch 8
  mgie warmup --model mgie_7b --dtype bfloat16 --mesh 1,1,-1 --steps 20

Give the flags that `mgie edit` will be given. Of --size only the ratio of the sides counts; without it, photos are
square. Whatever is there already stays, and takes no time; the programs of another version of the package, of JAX, or
of another machine are others. They are kept in $XDG_CACHE_HOME/mgie-jax, or ~/.cache/mgie-jax, about 5 MB for each size
of the bundled model.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this command's arguments on its parser."""
    parser.description = "Compile the programs of an edit and keep them; nothing is edited."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", metavar="DIR", type=argument, help="model directory (default: bundled)")
    parser.add_argument("--size", metavar="WxH", action="append", help="a photo's width and height; may be given again"
                        " (default: a square)")  # fmt: skip
    parser.add_argument("--batch", metavar="N", type=int, default=1, help="photos at once (default 1)")
    parser.add_argument("--steps", metavar="N", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--sampler", metavar="NAME", choices=SAMPLERS,
                        help=f"{', '.join(SAMPLERS)} (default: the model's)")  # fmt: skip
    add_scales(parser)
    parser.add_argument("--mesh", metavar="D,F,T", help="sizes of the axes data, fsdp, tensor over all devices, one of"
                        " which may be -1 (default: one device)")  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    parser.add_argument("--quantize", choices=QUANTIZE, help="as of `mgie edit`")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Check the arguments, load the model, compile. Raises ValueError for whatever the user can mend."""
    if not 1 <= args.batch <= MAX_BATCH:
        raise ValueError(f"--batch {args.batch}: must be from 1 to {MAX_BATCH}")
    check_numbers(args)
    sizes = [_size(text) for text in args.size or ["1x1"]]
    mesh = None if args.mesh is None else mesh_sizes(args.mesh)
    if args.model is not None and not args.model.is_dir():
        raise ValueError(f"{args.model}: there is no such model directory")

    import jax

    if not jax.config.jax_enable_compilation_cache:
        raise ValueError("JAX_ENABLE_COMPILATION_CACHE is off: nothing that is compiled would be kept; unset it")
    with contextlib.redirect_stdout(sys.stderr), _Bar() as bar:
        start = time.perf_counter()
        print("Loading the model ...", file=sys.stderr)
        editor = mgie_jax.load(args.model, mesh=mesh, dtype=args.dtype, quantize=args.quantize)
        loaded = time.perf_counter() - start

        from mgie_jax.warmup import warm

        done = warm(
            editor, sizes, batch=args.batch, steps=args.steps, sampler=args.sampler,
            guidance_scale=args.guidance_scale, image_guidance_scale=args.image_guidance_scale, progress=bar,
        )  # fmt: skip
    seconds = time.perf_counter() - start
    made = sum(not one.kept for one in done)
    if args.json:
        told = [{"name": one.name, "for": one.what, "kept": one.kept, "seconds": round(one.seconds, 3)} for one in done]
        print(json.dumps({"programs": told, "compiled": made, "load": round(loaded, 3), "seconds": round(seconds, 3)}))
        return 0
    widest = max(len(one.what) for one in done)
    for one in done:
        state = "there already" if one.kept else "compiled"
        print(f"{one.name:8} {one.what:{widest}}  {state:13} {one.seconds:7.2f} s")
    print(f"{made} of {len(done)} programs compiled in {seconds:.1f} s, {loaded:.1f} of which loaded the model.")
    return 0


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not all(size):
        raise ValueError(f"--size {text}: give a photo's width and height, such as 4032x3024 or 3x2")
    return size


class _Bar:
    """A tqdm bar with the program that is at work."""

    def __init__(self):
        self._bar = None

    def __call__(self, done: int, total: int, name: str) -> None:
        if self._bar is None:
            self._bar = tqdm(total=total, desc="Compiling", unit="program", file=sys.stderr)
        self._bar.set_postfix_str(name, refresh=False)
        self._bar.n = done
        self._bar.refresh()

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()
