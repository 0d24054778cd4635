"""`mgie edit` of many photos: those of a folder, or of a list."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence

from tqdm import tqdm

import mgie_jax
from mgie_jax.batch.extras import Extras
from mgie_jax.batch.jobs import Job, check_apart, folder_jobs, read_jobs, words
from mgie_jax.cli.mesh import mesh_sizes
from mgie_jax.paths import argument, is_within

FAILED = 3  # the exit code where some photos could not be edited
# Photos a device. On CPUs the bundled model takes 1.65 s of CPU time a photo alone, 1.75 in batches of 4, 1.95 of 16.
BATCH_ON_CPU, BATCH_ON_ACCELERATOR = 1, 8
EPILOG = """many photos:
  FOLDER's photos are edited in the order of their names. A line of JOBS.jsonl is
    {"photo": "cat.jpg", "instruction": "make it warmer", "seed": 7, "expressive": "...", "output": "warm.png"}
  with the photo relative to the list, and the last three if wanted. OUT gets the pictures, results.jsonl with what each
  was made of and, where photos could not be edited, errors.jsonl. Interrupted, the same command goes on from there.
  Exit code 3: some photos could not be edited; the others were.
"""


class _Batch(argparse.Action):
    """The option in whose presence no photo is named."""

    def __init__(self, *args, instead_of: Sequence[argparse.Action], **kwargs):
        super().__init__(*args, **kwargs)
        self._others = instead_of

    def __call__(self, parser, namespace, value, option_string=None):
        setattr(namespace, self.dest, value)
        for other in self._others:
            other.required = False


def add_arguments(parser: argparse.ArgumentParser, single: Sequence[argparse.Action]) -> None:
    """Declare the arguments for many photos; `single` are those that a list takes the place of."""
    group = parser.add_argument_group("many photos")
    group.add_argument("--batch", metavar="JOBS.jsonl", type=argument, action=_Batch, instead_of=single,
                       help="edit what this list says")  # fmt: skip
    group.add_argument("--batch-size", metavar="N", type=int,
                       help=f"photos on the devices at a time; of 1, pictures are bit for bit those of single edits"
                            f" (default: {BATCH_ON_CPU} on a CPU, else {BATCH_ON_ACCELERATOR} a device)")  # fmt: skip
    group.add_argument("--html", action="store_true", help="also write OUT/index.html, a page that shows all edits")
    group.add_argument("--overwrite", action="store_true", help="replace what OUT has of other settings")
    group.add_argument("--distributed", action="store_true",
                       help="share the photos with the other processes of a pod or cluster")  # fmt: skip


def check_unused(args: argparse.Namespace) -> None:
    """Raises ValueError where a single photo is to be edited in a way that is for many."""
    for flag in ("batch_size", "html", "overwrite", "distributed"):
        if getattr(args, flag):
            raise ValueError(f"--{flag.replace('_', '-')} is for many photos: a folder of them, or --batch JOBS.jsonl")


def run(args: argparse.Namespace) -> int:
    """Check everything that can be checked at once, then edit whatever is left to do.

    Raises ValueError (also as BatchError, ModelDirError) for whatever the user can mend.
    """
    sizes = None if args.mesh is None else mesh_sizes(args.mesh)
    jobs = _jobs(args)
    if args.model is not None and not args.model.is_dir():
        raise ValueError(f"{args.model}: there is no such model directory")

    import jax

    from mgie_jax import distributed
    from mgie_jax.batch.run import edit_all
    from mgie_jax.batch.settings import Settings
    from mgie_jax.models.quantize import check
    from mgie_jax.weights.model_config import load_config

    check(args.quantize)
    # Whatever libraries print on the way belongs to stderr: stdout is the answer alone.
    with contextlib.redirect_stdout(sys.stderr), distributed.joined(args.distributed):
        process, count = jax.process_index(), jax.process_count()
        devices = jax.local_devices()
        if sizes is None and len(devices) > 1:
            sizes = (-1, 1, 1)
        model = args.model or mgie_jax.default_model_dir()
        settings = Settings.of(
            model, steps=args.steps, sampler=args.sampler, guidance_scale=args.guidance_scale,
            image_guidance_scale=args.image_guidance_scale, dtype=args.dtype,
            quantize=args.quantize,
        )  # fmt: skip

        def load():
            print("Loading the model ...", file=sys.stderr)
            return mgie_jax.load(model, mesh=sizes, dtype=args.dtype, quantize=args.quantize, devices=devices)

        with _Progress(shown=process == 0) as progress:
            done = edit_all(
                jobs, args.output, settings, load_config(model), load,
                batch_size=args.batch_size or _batch_size(devices), extras=Extras(args.compare, args.html),
                overwrite=args.overwrite, process=process, count=count, progress=progress,
                sync=distributed.wait_for_all if count > 1 else lambda name: None,
            )  # fmt: skip
    if process == 0:
        _report(args, len(jobs), done)
    return FAILED if done.failed else 0


def _jobs(args: argparse.Namespace) -> list[Job]:
    """What is to be done; ValueError where the arguments do not go together, or the list is wrong."""
    if args.batch is not None:
        if args.photo is not None:
            raise ValueError("--batch names its photos in its list: leave PHOTO and INSTRUCTION out")
        if args.expressive is not None:
            raise ValueError('--expressive is for one instruction: give "expressive" in the lines of the list')
    if args.output is None:
        raise ValueError("the edited photos need a folder: name it with -o")
    if args.batch_size is not None and args.batch_size < 1:
        raise ValueError(f"--batch-size {args.batch_size}: must be at least 1")
    if args.batch is not None:
        jobs = read_jobs(args.batch, args.seed)
    else:
        expressive = None if args.expressive is None else words("--expressive", args.expressive)
        jobs = folder_jobs(args.photo, words("the instruction", args.instruction), args.seed, expressive)
        if is_within(args.output, args.photo) and is_within(args.photo, args.output):
            raise ValueError(f"{args.output}: is the folder of the photos itself; name another with -o")
    check_apart(jobs, args.output, Extras(args.compare, args.html).names)
    return jobs


def _batch_size(devices: Sequence) -> int:
    return len(devices) * (BATCH_ON_CPU if devices[0].platform == "cpu" else BATCH_ON_ACCELERATOR)


def _report(args: argparse.Namespace, jobs: int, done) -> None:
    page = args.output / "index.html" if args.html else None
    answer = {
        "output": str(args.output),
        "jobs": jobs,
        "edited": done.edited,
        "skipped": done.skipped,
        "failed": done.failed,
        "seconds": round(done.seconds, 3),
        "photos_per_second": round(done.edited / done.seconds, 3),
        "load_seconds": round(done.load_seconds, 3),
        "device_idle": round(done.ran.idle, 4) if done.ran else None,
        "html": page and str(page),
    }
    if args.json:
        print(json.dumps(answer))
        return
    print(f"Edited photos: {args.output}, {done.edited} of {jobs}" + (
        f"; {done.skipped} were there already" if done.skipped else ""))  # fmt: skip
    if done.failed:
        print(f"Failed: {done.failed}, listed in {args.output / 'errors.jsonl'}")
    if page:
        print(f"All edits on one page: {page}")
    if done.ran and done.edited:
        print(
            f"Seconds: {done.seconds:.1f}, {answer['photos_per_second']:.3g} photos/s, devices idle {done.ran.idle:.1%}"
        )


class _Progress:
    """A tqdm bar: `progress(done, total)`."""

    def __init__(self, shown: bool):
        self._shown, self._bar = shown, None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None and total:
            self._bar = tqdm(total=total, desc="Editing", unit="photo", file=sys.stderr, dynamic_ncols=True,
                             disable=not self._shown)  # fmt: skip
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()
