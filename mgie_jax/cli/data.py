"""`mgie data`: gather training photographs, and look at the examples generated from them."""

import argparse
from pathlib import Path

HELP = "gather training photos, show generated examples"
EXAMPLES = """examples:
  mgie data photos photos ~/Pictures wallpapers.zip --heldout '*2024*'
  mgie data show photos examples.png --count 12
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this command's arguments on its parser."""
    parser.description = "Gather training photographs, and look at the examples generated from them."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    photos = actions.add_parser("photos", help="copy every photograph found in folders, archives and .rcc bundles")
    photos.add_argument("out", metavar="OUT", type=Path, help="the folder to make")
    photos.add_argument("sources", metavar="SOURCE", nargs="+", type=Path)
    photos.add_argument("--size", type=int, default=192, help="short side of the copies, pixels (default: 192)")
    photos.add_argument("--exclude", metavar="PATTERN", nargs="*", default=(), help="origins to leave out")
    photos.add_argument("--exclude-from", metavar="FILE", type=Path, help="a file of such patterns, one a line")
    photos.add_argument("--heldout", metavar="PATTERN", nargs="*", default=(), help="origins never to train on")
    show = actions.add_parser("show", help="write a contact sheet of generated examples")
    show.add_argument("photos", metavar="PHOTOS", type=Path, help="a folder made by `mgie data photos`")
    show.add_argument("output", metavar="OUT.png", type=Path)
    show.add_argument("--cutouts", metavar="DIR", type=Path, help="captioned cut-outs, for local edits")
    show.add_argument("--count", type=int, default=12)
    show.add_argument("--size", type=int, default=128)
    show.add_argument("--split", choices=("train", "heldout"), default="train")
    show.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    """Carry out one action. Raises ValueError for folders that are missing or hold no photographs."""
    return {"photos": _photos, "show": _show}[args.action](args)


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


def _show(args: argparse.Namespace) -> int:
    from PIL import Image

    from mgie_jax.compare import sheet
    from mgie_jax.data.cutouts import load_cutouts
    from mgie_jax.data.generate import EditPairs
    from mgie_jax.data.photos import load
    from mgie_jax.photo import check_writable, save_atomic

    check_writable(args.output)
    try:
        photos = list(load(args.photos, args.split).values())
        cutouts = load_cutouts(args.cutouts) if args.cutouts else ()
    except FileNotFoundError as error:
        raise ValueError(f"{error}: there is no such folder, or it was not made by `mgie data photos`") from error
    pairs = EditPairs(photos, split=args.split, seed=args.seed, size=args.size, cutouts=cutouts)
    rows = []
    for example in map(pairs.example, range(args.count)):
        pictures = [Image.fromarray(example.source), Image.fromarray(example.target)]
        rows.append((pictures, f"[{example.kind}] {example.instruction}\n{example.expressive}"))
    save_atomic(sheet(rows), args.output)
    print(f"Examples: {args.output}")
    return 0
