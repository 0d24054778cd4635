"""`mgie data`: gather training photographs, build data sets of editing pairs, and look at their examples."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from mgie_jax.paths import argument, to_path

HELP = "gather training photos, build data sets, show examples"
# Repeated from data.builders.build, which would bring tensorflow-datasets in.
NAMES = ("ipr2pr", "magicbrush", "evr", "gier", "ma5k", "generated")
PHOTOS = """examples:
  mgie data photos photos ~/Pictures wallpapers.zip --heldout '*2024*'
"""
BUILD = """examples:
  mgie data build ipr2pr _data datasets
  mgie data build magicbrush MagicBrush datasets --split dev --max-skipped 0.01
  mgie data build generated photos datasets --examples 20000 --split train --json

SOURCE holds what the authors publish:
  ipr2pr      folders with prompt.json and ID_0.jpg, ID_1.jpg; or ipr2pr.tsv, ipr2pr.pkl and ipr2pr_expressive.json
  magicbrush  data/SPLIT-*.parquet, or edit_turns.json and images/, or both
  evr         train.json, valid.json, test.json and images/
  gier        splits/SPLIT_sess_3.json or GIER.json, and images/
  ma5k        annotations/SPLIT_sess_1.json or FiveK.json, and images/
  generated   a folder made by `mgie data photos`

The data set is OUT/NAME. Broken examples are left out and listed in OUT/NAME/skipped.jsonl.
"""
SHOW = """examples:
  mgie data show datasets/ipr2pr
  mgie data show datasets/magicbrush --split dev -o dev.png -n 30 --seed 1
  mgie data show photos
"""
# Of examples that are generated: option -> (type, placeholder, help).
GENERATED = {
    "size": (int, "N", "side of generated pictures, pixels (default: 128)"),
    "cutouts": (argument, "DIR", "captioned cut-outs, to generate local edits"),
}
MAX_SHOWN = 1000
PANEL, MAX_CAPTION = 144, 330  # pixels, and the characters that fit beside two such panels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this command's arguments on its parser."""
    parser.description = "Gather training photographs, build data sets of editing pairs, look at their examples."
    parser.epilog = "`mgie data ACTION --help` shows an action's arguments and examples."
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, what: str, examples: str) -> argparse.ArgumentParser:
        return actions.add_parser(
            name, help=what, description=what[0].upper() + what[1:] + ".", epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip

    photos = action("photos", "copy every photograph found in folders, archives and .rcc bundles", PHOTOS)
    photos.add_argument("out", metavar="OUT", type=argument, help="the folder to make")
    photos.add_argument("sources", metavar="SOURCE", nargs="+", type=argument)
    photos.add_argument("--size", type=int, default=192, help="short side of the copies, pixels (default: 192)")
    photos.add_argument("--exclude", metavar="PATTERN", nargs="*", default=(), help="origins to leave out")
    photos.add_argument("--exclude-from", metavar="FILE", type=Path, help="a file of such patterns, one a line")
    photos.add_argument("--heldout", metavar="PATTERN", nargs="*", default=(), help="origins never to train on")

    build = action("build", "write a data set from the files its authors publish", BUILD)
    build.add_argument("name", metavar="NAME", choices=NAMES, help=", ".join(NAMES))
    build.add_argument("source", metavar="SOURCE", type=argument, help="the folder of published files")
    build.add_argument("out", metavar="OUT", type=argument, help="the folder of data sets, made if absent")
    build.add_argument("--split", metavar="SPLIT", nargs="+", default=(), help="splits to build (default: all)")
    build.add_argument("--max-skipped", metavar="SHARE", type=float, default=0.05,
                       help="stop where more than this share of the examples is no good (default: 0.05)")  # fmt: skip
    build.add_argument("--examples", metavar="N", type=int, help="examples to generate of each split (default: 1000)")
    build.add_argument("--seed", metavar="N", type=int, help="of generated examples (default: 0)")
    build.add_argument("--json", action="store_true", help="print one line of JSON instead of text")

    show = action("show", "write a contact sheet of a data set's examples with their words", SHOW)
    show.add_argument("dataset", metavar="DATASET", type=argument,
                      help="a data set, or a folder of photos to generate from")  # fmt: skip
    show.add_argument("-o", "--output", metavar="OUT.png", type=argument, default=to_path("sheet.png"),
                      help="where to save (default: sheet.png)")  # fmt: skip
    show.add_argument("-n", "--count", metavar="N", type=int, default=12, help="how many (default: 12)")
    show.add_argument("--split", metavar="SPLIT", help="default: train, or the only one")
    show.add_argument("--seed", metavar="N", type=int, default=0, help="chooses the examples (default: 0)")
    for name, (kind, placeholder, what) in GENERATED.items():
        build.add_argument(f"--{name}", metavar=placeholder, type=kind, help=what)
        show.add_argument(f"--{name}", metavar=placeholder, type=kind, help=what)


def run(args: argparse.Namespace) -> int:
    """Carry out one action. Raises ValueError for folders that are missing or hold something else."""
    return {"photos": _photos, "build": _build, "show": _show}[args.action](args)


def _photos(args: argparse.Namespace) -> int:
    from mgie_jax.data.photos import collect

    exclude = list(args.exclude)
    if args.exclude_from:
        if not args.exclude_from.is_file():
            raise ValueError(f"{args.exclude_from}: there is no such file")
        exclude += args.exclude_from.read_text().split("\n")
    try:
        index = collect(args.out, args.sources, args.size, [e for e in exclude if e], args.heldout)
    except FileNotFoundError as error:
        raise ValueError(f"{error}: there is no such source") from error
    heldout = sum(entry["split"] == "heldout" for entry in index)
    if not index:
        raise ValueError("no photographs were found; photographs are at least 128 px and not drawings")
    print(f"{len(index)} photographs in {args.out}, {heldout} of them held out")
    return 0


def _build(args: argparse.Namespace) -> int:
    options = {name: getattr(args, name) for name in ("examples", "seed", *GENERATED)}
    options = {name: value for name, value in options.items() if value is not None}
    if options and args.name != "generated":
        raise ValueError(f"--{next(iter(options))} is of `generated` alone; {args.name} has it from its files")
    if any(options.get(name, 1) < 1 for name in ("examples", "size")) or options.get("seed", 0) < 0:
        raise ValueError("--examples and --size must be at least 1, --seed at least 0")
    if not args.source.is_dir():
        raise ValueError(f"{args.source}: there is no such folder")

    from mgie_jax.data.builders.build import build

    start = time.perf_counter()
    with _Progress(args.name) as progress:
        built = build(
            args.name, args.source, args.out, splits=args.split, max_skipped=args.max_skipped, progress=progress,
            **options,
        )  # fmt: skip
    answer = {
        "path": str(built.path),
        "splits": built.splits,
        "skipped": built.skipped,
        "log": built.log and str(built.log),
        "bytes": built.bytes,
        "seconds": round(time.perf_counter() - start, 3),
    }
    if args.json:
        print(json.dumps(answer))
        return 0
    counts = ", ".join(f"{count} {split}" for split, count in built.splits.items())
    print(f"Data set: {built.path} ({counts}, {built.bytes / 1e6:.1f} MB)")
    if built.log:
        print(f"Skipped: {built.skipped}, listed in {built.log}")
    return 0


class _Progress:
    """A tqdm bar that appears with the first example: `progress(done, total)`."""

    def __init__(self, name: str):
        self._name, self._bar = name, None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(total=total, desc=self._name, unit="example", file=sys.stderr, dynamic_ncols=True)
        self._bar.update(done - self._bar.n)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()


def _show(args: argparse.Namespace) -> int:
    from PIL import ImageOps

    from mgie_jax.compare import PAPER, sheet
    from mgie_jax.photo import check_writable, save_atomic

    if not 1 <= args.count <= MAX_SHOWN:
        raise ValueError(f"-n must be between 1 and {MAX_SHOWN}, not {args.count}")
    if args.seed < 0:
        raise ValueError(f"--seed must be at least 0, not {args.seed}")
    check_writable(args.output)
    generated = (args.dataset / "index.json").is_file()
    rows = []
    for before, after, words in _generated(args) if generated else _stored(args):
        # Squares, so that all captions start at the same place and no panorama leaves them without room.
        panels = [ImageOps.pad(picture, (PANEL, PANEL), color=PAPER) for picture in (before, after)]
        rows.append((panels, "\n".join(_shortened(part) for part in words)))
    save_atomic(sheet(rows, PANEL), args.output)
    print(f"Examples: {args.output}")
    return 0


def _stored(args: argparse.Namespace) -> Iterator[tuple]:
    """(before, after, words) of examples of a built data set, drawn without repeating."""
    import numpy as np

    from mgie_jax.data.records import load
    from mgie_jax.photo import decode_photo

    for name in GENERATED:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} is of generated examples; {args.dataset} is no folder of photos")
    examples = load(args.dataset, args.split)
    drawn = np.random.default_rng(args.seed).permutation(len(examples))[: args.count]
    for example in map(examples.__getitem__, sorted(drawn)):
        pictures = (decode_photo(content, example.id) for content in (example.source, example.target))
        yield *pictures, (f"[{example.id}] {example.instruction}", example.expressive)


def _generated(args: argparse.Namespace) -> Iterator[tuple]:
    """(before, after, words) of examples generated from a folder of photos."""
    from PIL import Image

    from mgie_jax.data.cutouts import load_cutouts
    from mgie_jax.data.generate import EditPairs
    from mgie_jax.data.photos import load

    split = args.split or "train"
    try:
        photos = list(load(args.dataset, split).values())
        cutouts = load_cutouts(args.cutouts) if args.cutouts else ()
    except FileNotFoundError as error:
        raise ValueError(f"{error}: there is no such folder, or it was not made by `mgie data photos`") from error
    size = 128 if args.size is None else args.size
    pairs = EditPairs(photos, split=split, seed=args.seed, size=size, cutouts=cutouts)
    for example in map(pairs.example, range(args.count)):
        pictures = (Image.fromarray(pixels) for pixels in (example.source, example.target))
        yield *pictures, (f"[{example.kind}] {example.instruction}", example.expressive)


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_CAPTION else text[: MAX_CAPTION - 3] + "..."
