"""A report as a picture: how long each stage takes against the peers, and how much of the roofline it reaches."""

import importlib.util
import io
import textwrap
from pathlib import Path

from mgie_jax.bench.measure import Report
from mgie_jax.bench.report import title
from mgie_jax.paths import AnyPath
from mgie_jax.photo import check_writable
from mgie_jax.weights.atomic import writing

SUFFIXES = (".png", ".svg", ".pdf")
COLORS = ("tab:orange", "tab:red", "tab:purple")


def check(path: AnyPath) -> None:
    """Raises ValueError where no picture can be drawn there, before anything is measured."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--plot {path}: end the name in one of {' '.join(SUFFIXES)}")
    check_writable(path.with_suffix(".png"))
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install 'mgie_jax[bench]'")


def draw(report: Report, path: AnyPath) -> None:
    """Writes the picture, whole or not at all."""
    from matplotlib.figure import Figure

    rows = [row for row in report.rows if row.peers or row.share is not None]
    names, peers = [row.name for row in rows], list(dict.fromkeys(name for row in rows for name in row.peers))
    width = 10 if peers else 6
    figure = Figure(figsize=(width, 1.6 + 0.42 * max(1, len(rows))), layout="constrained")
    axes = figure.subplots(1, 2 if peers else 1, squeeze=False)[0]
    places = range(len(rows))
    axes[-1].barh(places, [100 * (row.share or 0) for row in rows], color="tab:blue")
    axes[-1].set_xlabel("share of the roofline measured in this run, %")
    if peers:
        thick = 0.8 / len(peers)
        for n, (name, color) in enumerate(zip(peers, COLORS, strict=False)):
            mine = [(place + (n - (len(peers) - 1) / 2) * thick, row.peers[name].ratio)
                    for place, row in enumerate(rows) if name in row.peers]  # fmt: skip
            medians = [ratio.median for _, ratio in mine]
            spread = [[r.median - r.low for _, r in mine], [r.high - r.median for _, r in mine]]
            axes[0].barh([place for place, _ in mine], medians, thick, xerr=spread, label=name, color=color)
        axes[0].axvline(1, color="black", linewidth=1)
        axes[0].set_xlabel("our time over the peer's (below 1: faster)")
        axes[0].legend(fontsize=8)
    for axis in axes:
        axis.set_yticks(places, names)
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle("\n".join(textwrap.wrap(title(report), 13 * width)), fontsize=10)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, format=Path(str(path)).suffix[1:].lower())
    with writing(path) as file:
        file.write(drawn.getvalue())
