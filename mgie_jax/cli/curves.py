"""`mgie curves`: the training curves of one or more runs as a picture."""

import argparse
from pathlib import Path

from mgie_jax.paths import AnyPath, argument

HELP = "draw training curves"
EXAMPLES = """examples:
  mgie curves curves.png out/vae out/mllm out/joint64
"""
FIGURES = ("psnr", "L_1", "L_ins", "L_edit", "token_accuracy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this command's arguments on its parser."""
    parser.description = "Draw the training curves of runs, from the metrics.jsonl of their folders."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("output", metavar="OUT.png", type=Path)
    parser.add_argument("runs", metavar="WORKDIR", nargs="+", type=argument, help="folders that `mgie train` wrote")


def run(args: argparse.Namespace) -> int:
    """One panel for each figure of each run. Raises ValueError for a folder without metrics."""
    histories = {path.name: read_metrics(path) for path in args.runs}
    panels = [(name, figure) for name, rows in histories.items() for figure in FIGURES if figure in rows[0]]
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("curves are drawn by matplotlib: pip install 'mgie_jax[train]'") from error

    columns = 3
    rows = -(-len(panels) // columns)
    picture = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    axes = picture.subplots(rows, columns, squeeze=False).ravel()
    for axis, (name, figure) in zip(axes, panels, strict=False):
        history = histories[name]
        axis.plot([row["step"] for row in history], [_number(row.get(figure)) for row in history], linewidth=1)
        axis.set_title(f"{name}: {figure}", fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.remove()
    picture.savefig(args.output, dpi=110)
    print(f"Curves: {args.output}")
    return 0


def read_metrics(workdir: AnyPath) -> list[dict]:
    """The whole lines of a run's metrics.jsonl; one torn by a kill is left out.

    Raises:
        ValueError: there are none.
    """
    from mgie_jax.train.log import METRICS, read_lines

    path = workdir / METRICS
    rows = read_lines(path) if path.is_file() else []
    if not rows:
        raise ValueError(f"{path}: there is no such file, or it is empty; name a folder that `mgie train` wrote")
    return rows


def _number(value: float | None) -> float:
    """A figure as matplotlib wants it: NaN, a gap, where the run had none or one that was not finite."""
    return float("nan") if value is None else value
