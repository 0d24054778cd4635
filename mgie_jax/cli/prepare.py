"""`mgie prepare`: have an MLLM write the expressive instructions of a data set."""

import argparse
import json
import sys
import time

from tqdm import tqdm

from mgie_jax.cli.mesh import mesh_sizes
from mgie_jax.paths import argument, to_path

HELP = "write expressive instructions for a data set"
EXAMPLES = """examples:
  mgie prepare datasets/ipr2pr datasets/ipr2pr-expressive --summarizer flan-t5-xxl
  mgie prepare datasets/magicbrush prepared --summarizer none --split dev --limit 100 --json
  mgie prepare datasets/ipr2pr prepared --model llava --summarizer flan-t5-xxl --dtype bfloat16 --mesh=-1,1,4 \\
      --batch-size 32

The MLLM is asked about each picture and instruction "in a short paragraph"; two sentences of its answer are kept and
summarized. OUT is a new data set with the same examples and pictures. Broken examples are left out and listed in
OUT/skipped.jsonl. Work in progress is in OUT.parts: interrupted, the same command goes on from there.

Several processes (--distributed, or launch/local.py) share the examples; OUT must be where all of them see it: a shared
file system, or a bucket (gs://BUCKET/NAME).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this command's arguments on its parser."""
    parser.description = "Have an MLLM write the expressive instructions of a data set."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("data", metavar="DATA", type=argument, help="a data set made by `mgie data build`")
    parser.add_argument("out", metavar="OUT", type=argument, help="the data set to make")
    parser.add_argument("--model", metavar="DIR", type=argument,
                        help="model directory of the MLLM (default: the bundled)")  # fmt: skip
    parser.add_argument("--summarizer", metavar="DIR", required=True,
                        help="T5 v1.1 folder as transformers has it, or `none`: keep answers whole")  # fmt: skip
    parser.add_argument("--split", metavar="SPLIT", nargs="+", default=(), help="splits to prepare (default: all)")
    parser.add_argument("--limit", metavar="N", type=int, help="only the first N examples of each split")
    parser.add_argument("--batch-size", metavar="N", type=int, default=16,
                        help="examples asked together, a process (default: 16)")  # fmt: skip
    parser.add_argument("--max-new-tokens", metavar="N", type=int, default=1024,
                        help="the longest answer of the MLLM (default: 1024)")  # fmt: skip
    parser.add_argument("--max-skipped", metavar="SHARE", type=float, default=0.05,
                        help="stop where more than this share of the examples is no good (default: 0.05)")  # fmt: skip
    parser.add_argument("--mesh", metavar="D,F,T", default="-1,1,1",
                        help="devices of a process as data, fsdp, tensor (default: -1,1,1)")  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    parser.add_argument("--distributed", action="store_true", help="join the other processes of a pod or cluster")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at OUT")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Prepare a data set. Raises ValueError for data, models or options that will not do."""
    for name in ("batch_size", "max_new_tokens"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit must be at least 1, not {args.limit}")
    if not 0 <= args.max_skipped <= 1:
        raise ValueError(f"--max-skipped must be between 0 and 1, not {args.max_skipped}")
    sizes = mesh_sizes(args.mesh)
    summarizer = None if args.summarizer == "none" else to_path(args.summarizer)

    from mgie_jax.data.prepare import Settings, chosen, finished, prepare
    from mgie_jax.data.records import contents
    from mgie_jax.loading import default_model_dir
    from mgie_jax.weights.atomic import fingerprint
    from mgie_jax.weights.model_config import load_config
    from mgie_jax.weights.t5 import load_t5_config

    # Whatever can be wrong is found before a network is loaded.
    model = args.model or default_model_dir()
    load_config(model)
    if summarizer:
        load_t5_config(summarizer)
    total = sum(chosen(args.data, args.split, args.limit).values())
    settings = Settings(
        data=contents(args.data).digest,
        model=fingerprint(model),
        summarizer=fingerprint(summarizer) if summarizer else "none",
        splits=tuple(args.split),
        limit=args.limit,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
        dtype=args.dtype,
    )
    start = time.perf_counter()
    done = finished(args.data, args.out, settings, args.overwrite)
    if done is None:
        import jax
        from jax.experimental import multihost_utils

        from mgie_jax.compilation import enable_compilation_cache
        from mgie_jax.data.ask import Asker
        from mgie_jax.distributed import initialize
        from mgie_jax.sharding import make_mesh

        enable_compilation_cache()
        initialize(args.distributed)
        process, count = jax.process_index(), jax.process_count()
        ask = Asker(
            model, summarizer, make_mesh(sizes, jax.local_devices()),
            batch_size=args.batch_size, max_new_tokens=args.max_new_tokens, dtype=args.dtype,
        )  # fmt: skip
        start = time.perf_counter()
        with _Progress(shown=process == 0) as progress:
            done = prepare(
                args.data, args.out, settings, ask, max_skipped=args.max_skipped, process=process, count=count,
                sync=multihost_utils.sync_global_devices if count > 1 else lambda name: None, progress=progress,
            )  # fmt: skip
        if process:
            return 0
    seconds = time.perf_counter() - start
    answer = {
        "path": str(done.path),
        "splits": done.splits,
        "examples": total,
        "asked": done.asked,
        "empty": done.empty,
        "skipped": done.skipped,
        "log": done.log and str(done.log),
        "seconds": round(seconds, 3),
        "examples_per_second": round(done.asked / seconds, 3),
    }
    if args.json:
        print(json.dumps(answer))
        return 0
    print(f"Data set: {done.path} ({', '.join(f'{number} {split}' for split, number in done.splits.items())})")
    if done.empty:
        print(f"Without an answer: {done.empty}, which keep their instruction")
    if done.log:
        print(f"Skipped: {done.skipped}, listed in {done.log}")
    return 0


class _Progress:
    """A tqdm bar for each stage, which begins where the last run ended: `progress(stage, done, total)`."""

    def __init__(self, shown: bool):
        self._shown, self._stage, self._bar = shown, "", None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self.close()
            self._stage = stage
            self._bar = tqdm(total=total, initial=done, desc=stage, unit="example", file=sys.stderr, dynamic_ncols=True,
                             disable=not self._shown)  # fmt: skip
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
