"""`mgie eval`: measure a model on photos it has never seen."""

import argparse
import contextlib
import json
import sys
from pathlib import Path

from tqdm import tqdm

from mgie_jax.paths import AnyPath, argument

HELP = "measure how well a model edits"
EXAMPLES = """examples:
  mgie eval --suite photo-ops --photos photos
  mgie eval --suite photo-ops --photos ~/Pictures --per-kind 4 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this command's arguments on its parser."""
    parser.description = "Measure a model: every kind of global edit, on held-out photos, in held-out words."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--suite", choices=("photo-ops",), default="photo-ops")
    parser.add_argument("--model", metavar="DIR", type=argument, help="model directory (default: the bundled model)")
    parser.add_argument(
        "--photos", metavar="DIR", type=argument,
        help="a folder of photos; of one made by `mgie data photos`, the held-out ones (default: the bundled examples)",
    )  # fmt: skip
    parser.add_argument("--per-kind", metavar="N", type=int, default=16, help="examples of each kind (default: 16)")
    parser.add_argument("--steps", metavar="N", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--sheet", metavar="OUT.png", type=argument, help="write a picture of one example of each kind")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Run the suite and print its table. Raises ValueError for a folder without photos."""
    if args.per_kind < 1:
        raise ValueError(f"--per-kind {args.per_kind}: must be at least 1")
    from mgie_jax.photo import check_writable, save_atomic

    if args.sheet:
        check_writable(args.sheet)
    photos = heldout_photos(args.photos or Path(__file__).parent.parent / "assets" / "photos")
    import mgie_jax
    from mgie_jax.compare import sheet
    from mgie_jax.eval.photo_ops import photo_ops

    kept = {}
    with contextlib.redirect_stdout(sys.stderr), tqdm(desc="Edits", unit="edit", file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = photo_ops(
            mgie_jax.load(args.model), photos, args.per_kind, args.steps, progress,
            keep=lambda example, result: kept.setdefault(example.kind, (example, result)),
        )  # fmt: skip
    if args.sheet:
        save_atomic(sheet([_sheet_row(*pair) for pair in kept.values()]), args.sheet)
    print(json.dumps(report.to_json()) if args.json else table(report))
    return 0


def _sheet_row(example, result) -> tuple[list, str]:
    """Before, after and the true result, with the words."""
    from PIL import Image

    pictures = [result.before, result.image, Image.fromarray(example.target)]
    return pictures, f"[{example.kind}] {example.instruction}\n{result.expressive}"


def heldout_photos(folder: AnyPath) -> list:
    """The photos of a folder as uint8 arrays; of a collected one, those held out.

    Raises:
        ValueError: there is no such folder, or no photo in it.
    """
    import numpy as np

    from mgie_jax.data.photos import IMAGE_SUFFIXES, INDEX_NAME, load
    from mgie_jax.photo import fit, open_photo

    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    if (folder / INDEX_NAME).exists():
        photos = list(load(folder, "heldout").values())
    else:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        photos = [np.asarray(fit(open_photo(path), 256, 16)[0]) for path in paths]
    if not photos:
        raise ValueError(f"{folder}: there are no photos in it")
    return photos


def table(report) -> str:
    """The report for people."""
    lines = [f"{'edit':<18}{'L1 before':>10}{'L1 after':>10}{'PSNR':>7}{'direction':>11}{'named':>7}"]
    for kind in (*report.kinds, *report.repairs):
        direction = "" if kind.direction is None else f"{kind.direction:.0%}"
        lines.append(
            f"{kind.kind:<18}{kind.unedited_l1:>10.3f}{kind.l1:>10.3f}{kind.psnr:>7.1f}{direction:>11}{kind.named:>7.0%}"
        )
    s = report.summary
    return "\n".join([
        *lines, "",
        f"{report.photos} photos at {report.resolution} px, {report.kinds[0].examples} examples of each kind",
        f"autoencoder reconstruction   {s['reconstruction_psnr']:.2f} dB",
        f"L1 at most half of unedited  {s['halved']} of {s['visible_kinds']} kinds",
        f"mean PSNR of global edits    {s['mean_psnr']:.2f} dB",
        f"right direction              {s['direction']:.1%}",
        f"right edit named             {s['named']:.1%} (photo-dependent edits: {s['repairs_named']:.1%})",
    ])  # fmt: skip
