"""`mgie edit`: a photo and an instruction in, the edited photo out; `edit_many` has a folder's or a list's."""

import argparse
import contextlib
import gc
import json
import math
import sys
import time

from tqdm import tqdm

import mgie_jax
from mgie_jax.batch.jobs import MAX_SEED, words
from mgie_jax.cli import edit_many
from mgie_jax.cli.mesh import mesh_sizes
from mgie_jax.compare import compare_picture
from mgie_jax.paths import argument, is_folder, is_same, to_path
from mgie_jax.photo import check_writable, open_photo, save_atomic

HELP = "edit a photo by an instruction"
# Repeated from diffusion.sample, which would bring JAX in before the arguments are checked.
SAMPLERS = ("euler_ancestral", "ddim", "dpmpp_2m")
QUANTIZE = ("int8", "int8_weights")  # of models.quantize
MAX_STEPS = 1000  # the diffusion has no more
MAX_SCALE = 100.0
EXAMPLES = """examples:
  mgie edit cat.jpg "make it look like night"
  mgie edit cat.jpg "make it brighter" -o out/bright.png --compare
  mgie edit cat.jpg "black and white" --steps 20 --seed 7 --json
  mgie edit cat.jpg "make it warmer" --model mgie_7b --mesh 1,1,-1 --dtype bfloat16
  mgie edit cat.jpg "make it warmer" --model mgie_7b --dtype bfloat16 --quantize int8
  mgie edit holiday "make it warmer" -o holiday-warmer --html
  mgie edit --batch jobs.jsonl -o edited --json

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this command's arguments on its parser."""
    parser.description = "Edit a photo by an instruction in plain words."
    parser.epilog = EXAMPLES + edit_many.EPILOG
    parser.usage = (
        "%(prog)s PHOTO INSTRUCTION [options]\n       %(prog)s FOLDER INSTRUCTION -o OUT [options]\n"
        "       %(prog)s --batch JOBS.jsonl -o OUT [options]"
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    photo = parser.add_argument("photo", metavar="PHOTO", type=argument,
                                help="JPEG, PNG, WebP, TIFF, ...; or a folder of them")  # fmt: skip
    instruction = parser.add_argument("instruction", metavar="INSTRUCTION",
                                      help='what to change, such as "make it warmer"')  # fmt: skip
    parser.add_argument("-o", "--output", metavar="OUT.png", type=argument,
                        help="where to save (default: ./PHOTO-edited.png); of several photos, a folder")  # fmt: skip
    parser.add_argument("--compare", action="store_true", help="also save OUT-compare.png: before and after")
    parser.add_argument("--model", metavar="DIR", type=argument, help="model directory (default: bundled)")
    parser.add_argument("--steps", metavar="N", type=int, help="denoising steps (default: the model's)")
    parser.add_argument(
        "--sampler", metavar="NAME", choices=SAMPLERS, help=f"{', '.join(SAMPLERS)} (default: the model's)"
    )
    add_scales(parser)
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="equal seeds, equal pictures (default 0)")
    parser.add_argument("--expressive", metavar="TEXT", help="use this expressive instruction, write none")
    parser.add_argument("--mesh", metavar="D,F,T", help="spread the model over all devices: sizes of the axes data,"
                        " fsdp, tensor, one of which may be -1 (default: one device; -1,1,1 for many"
                        " photos)")  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    parser.add_argument("--quantize", choices=QUANTIZE, help="keep weights of the LLM and UNet in int8; int8 multiplies"
                        " in int8 too, int8_weights in --dtype (pip install 'mgie_jax[int8]')")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of text")
    edit_many.add_arguments(parser, [photo, instruction])


def add_scales(parser: argparse.ArgumentParser) -> None:
    """Declare the two scales of the guidance."""
    parser.add_argument("--guidance-scale", metavar="S", type=float,
                        help="how far to follow the instruction (default: the model's)")  # fmt: skip
    parser.add_argument("--image-guidance-scale", metavar="S", type=float,
                        help="how far to keep the photo (default: the model's)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Check everything that can be checked at once, then load the model, edit and save.

    Raises ValueError (also as PhotoError, ModelDirError) for whatever the user can mend.
    """
    if not 0 <= args.seed <= MAX_SEED:
        raise ValueError(f"--seed {args.seed}: must be from 0 to {MAX_SEED}")
    check_numbers(args)
    if args.batch is not None or is_folder(args.photo):
        return edit_many.run(args)
    edit_many.check_unused(args)
    instruction = words("the instruction", args.instruction)
    expressive = None if args.expressive is None else words("--expressive", args.expressive)
    sizes = None if args.mesh is None else mesh_sizes(args.mesh)
    if args.model is not None and not args.model.is_dir():
        raise ValueError(f"{args.model}: there is no such model directory")
    photo = open_photo(args.photo)
    output = args.output or to_path(f"{args.photo.stem}-edited.png")
    comparison = output.with_name(f"{output.stem}-compare{output.suffix}")
    for path in [output, comparison] if args.compare else [output]:
        check_writable(path)
        if is_same(path, args.photo):
            raise ValueError(f"{path}: is the photo itself; choose another name with -o")

    # Whatever libraries print on the way belongs to stderr: stdout is the answer alone.
    with contextlib.redirect_stdout(sys.stderr), _without_garbage_collection(), _Progress() as progress:
        start = time.perf_counter()
        print("Loading the model ...", file=sys.stderr)
        usual = (args.steps, args.sampler, args.guidance_scale, args.image_guidance_scale, expressive) == (None,) * 5
        size = photo.size if usual else None
        editor = mgie_jax.load(args.model, mesh=sizes, dtype=args.dtype, quantize=args.quantize, size=size)
        seconds = {"load": time.perf_counter() - start}
        result = editor.edit(
            photo,
            instruction,
            steps=args.steps,
            sampler=args.sampler,
            guidance_scale=args.guidance_scale,
            image_guidance_scale=args.image_guidance_scale,
            seed=args.seed,
            expressive=expressive,
            progress=progress,
        )
        seconds |= result.seconds
        told = _about(args, instruction, result)
    if result.note:
        print(f"Note: {result.note}.", file=sys.stderr)
    start = time.perf_counter()
    pictures = {output: result.image}
    if args.compare:
        pictures[comparison] = compare_picture(result.before, result.image, instruction, result.expressive)
    for path, picture in pictures.items():
        save_atomic(picture, path, told)
    seconds["save"] = time.perf_counter() - start
    seconds = {stage: round(float(value), 3) for stage, value in seconds.items()}

    if args.json:
        answer = {
            "expressive": result.expressive,
            "seed": result.seed,
            "size": list(result.image.size),
            "output": str(output),
            "seconds": seconds,
        }
        print(json.dumps(answer))
        return 0
    print(f"Expressive instruction: {result.expressive}")
    print(f"Edited photo: {output}")
    if args.compare:
        print(f"Before and after: {comparison}")
    print("Seconds: " + ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items()))
    return 0


def _about(args: argparse.Namespace, instruction: str, result) -> dict[str, str]:
    """What the picture's file says of how it was made."""
    from mgie_jax.batch.settings import Settings, about

    settings = Settings.of(
        args.model or mgie_jax.default_model_dir(), steps=args.steps, sampler=args.sampler,
        guidance_scale=args.guidance_scale, image_guidance_scale=args.image_guidance_scale, dtype=args.dtype,
        quantize=args.quantize,
    )  # fmt: skip
    return about(instruction, result.expressive, result.seed, settings)


@contextlib.contextmanager
def _without_garbage_collection():
    """What JAX and transformers bring stays; to look through it again and again is a tenth of such a process' time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def check_numbers(args: argparse.Namespace) -> None:
    """Raises ValueError for a number of steps or a scale out of range."""
    if args.steps is not None and not 1 <= args.steps <= MAX_STEPS:
        raise ValueError(f"--steps {args.steps}: must be from 1 to {MAX_STEPS}")
    for flag in ("guidance_scale", "image_guidance_scale"):
        scale = getattr(args, flag)
        if scale is not None and not (math.isfinite(scale) and 0 <= scale <= MAX_SCALE):
            raise ValueError(f"--{flag.replace('_', '-')} {scale}: must be from 0 to {MAX_SCALE:g}")


class _Progress:
    """A tqdm bar that appears with the first denoising step: `progress(done, total)`."""

    def __init__(self):
        self._bar = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(total=int(total), desc="Denoising", unit="step", file=sys.stderr)
        self._bar.update(int(done) - self._bar.n)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()
