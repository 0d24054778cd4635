"""A plan as a page of HTML that needs nothing but itself."""

from collections.abc import Mapping, Sequence
from html import escape

from mgie_jax.plan import report
from mgie_jax.plan.facts import Facts
from mgie_jax.plan.plan import Plan
from mgie_jax.plan.report import Table, held, seconds
from mgie_jax.plan.roofline import Roofline

COLORS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")
TEMPORARY, LIMIT, BOUND = "#d7dbe0", "#c62a2f", "#ff725c"
WIDTH, LEFT, BAR, LINE, COLUMNS = 800, 110, 26, 20, 3
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #1b1e23 }
h1 { font-size: 1.35rem } h2 { font-size: 1.05rem; margin: 1.8rem 0 .4rem }
p.good { color: #18794e } p.bad { color: #c62a2f } p.note { color: #60646c }
table { border-collapse: collapse; font-size: .86rem } svg { max-width: 100%; height: auto; font-size: 12px }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top; overflow-wrap: anywhere }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
tr + tr td { border-top: 1px solid #eee }
"""


def page(plan: Plan, config: str, advice: str = "") -> str:
    """The whole page; `advice` is a line on what to change."""
    parts = [
        f"<h1>{escape(report.title(plan, config))}</h1>",
        f"<p>{escape(plan.setting)}</p>",
        f'<p class="{"good" if plan.fits else "bad"}">{escape(report.verdict(plan))}</p>',
        f"<p>{escape(advice)}</p>" if advice else "",
        f"<p>{escape(report.best(plan))}</p>",
        *(f'<p class="note">{escape(note)}</p>' for note in report.notes(plan)),
        "<h2>Memory of a device by part</h2>",
        memory_bars(plan),
        "<h2>Time at best</h2>",
        roofline_bars(plan),
        *(_table(table) for table in report.tables(plan)),
    ]
    head = f'<meta charset="utf-8"><title>{escape(report.title(plan, config))}</title><style>{STYLE}</style>'
    body = "\n".join(filter(None, parts))
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def memory_bars(plan: Plan) -> str:
    """A bar for each program, of its memory by part, and a line where the memory ends."""
    named = {name: max(f.parts.get(name, 0) for f in plan.facts) for facts in plan.facts for name in facts.parts}
    largest = sorted(named, key=lambda name: -named[name])[: len(COLORS) - 1]
    colors = dict(zip([*largest, "other arguments"], COLORS, strict=False)) | {
        "outputs": "#1b1e23", "temporaries": TEMPORARY, "the program itself": "#60646c"
    }  # fmt: skip
    scale = (WIDTH - LEFT) / max(plan.hbm_bytes, *(facts.memory.total for facts in plan.facts))
    drawn, shown = [], set()
    for n, facts in enumerate(plan.facts):
        at, y = float(LEFT), n * (BAR + 6)
        drawn.append(f'<text x="0" y="{y + 17}">{escape(facts.name)}</text>')
        for name, there in _memory_parts(facts, largest).items():
            if there > 0:
                drawn.append(
                    f'<rect x="{at:.1f}" y="{y}" width="{there * scale:.1f}" height="{BAR}" fill="{colors[name]}">'
                    f"<title>{escape(f'{facts.name}, {name}: {held(there)}')}</title></rect>"
                )
                at += there * scale
                shown.add(name)
    end, below = LEFT + plan.hbm_bytes * scale, len(plan.facts) * (BAR + 6)
    drawn.append(
        f'<line x1="{end:.1f}" x2="{end:.1f}" y1="-3" y2="{below}" stroke="{LIMIT}" stroke-width="2">'
        f"<title>{held(plan.hbm_bytes)}</title></line>"
    )
    keys = [name for name in colors if name in shown]
    for n, name in enumerate(keys):
        x, y = n % COLUMNS * WIDTH // COLUMNS, below + 16 + LINE * (n // COLUMNS)
        drawn.append(f'<rect x="{x}" y="{y - 10}" width="11" height="11" fill="{colors[name]}"/>')
        drawn.append(f'<text x="{x + 16}" y="{y}">{escape(name)}</text>')
    label = f"memory: {held(plan.largest.memory.total)} of {held(plan.hbm_bytes)}"
    return _svg(label, below + 8 + LINE * -(-len(keys) // COLUMNS), drawn)


def _memory_parts(facts: Facts, largest: Sequence[str]) -> dict[str, int]:
    memory, parts = facts.memory, {name: facts.parts.get(name, 0) for name in largest}
    return parts | {
        "other arguments": memory.arguments + memory.unread - sum(parts.values()),
        "outputs": memory.outputs - memory.aliased,
        "temporaries": memory.temporaries,
        "the program itself": memory.code,
    }


def roofline_bars(plan: Plan) -> str:
    """For each program a bar for each of compute, HBM, ICI (and of its axes) and DCN."""
    lines, names = plan.rooflines, report.bounds(plan)
    scale = (WIDTH - LEFT - 240) / max([line.seconds for line in lines] + [1e-12])
    drawn, y = [], 0
    for facts, line in zip(plan.facts, lines, strict=True):
        drawn.append(f'<text x="0" y="{y + 14}">{escape(facts.name)}</text>')
        for name, took in _times(line, names):
            color = BOUND if name == names[line.bound] else COLORS[0]
            drawn.append(
                f'<text x="{LEFT}" y="{y + 14}">{escape(name)}</text>'
                f'<rect x="{LEFT + 160}" y="{y + 3}" width="{max(took * scale, 1):.1f}" height="{LINE - 6}" '
                f'fill="{color}"><title>{escape(f"{facts.name}, {name}: {seconds(took)}")}</title></rect>'
                f'<text x="{LEFT + 166 + took * scale:.1f}" y="{y + 14}">{seconds(took)}</text>'
            )
            y += LINE
        y += 8
    return _svg("time at best", y, drawn)


def _times(line: Roofline, names: Mapping[str, str]) -> list[tuple[str, float]]:
    times = [(name, getattr(line, key)) for key, name in names.items()]
    if len(line.axes) > 1:
        times[3:3] = [(f"{names['ici']}, {axes}", took) for axes, took in line.axes.items()]
    return [(name, took) for name, took in times if took] or times[:1]


def _svg(label: str, height: int, inside: Sequence[str]) -> str:
    box = f'viewBox="-2 -4 {WIDTH + 4} {height + 8}" width="{WIDTH}" role="img" aria-label="{escape(label)}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {box}>', *inside, "</svg>"])


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        opened = (f'{tag} class="n"' if side == ">" else tag for side in table.sides)
        made = (f"<{tags}>{escape(cell)}</{tag}>" for cell, tags in zip(cells, opened, strict=True))
        return f"<tr>{''.join(made)}</tr>"

    lines = [row(table.head, "th"), *(row(cells, "td") for cells in table.rows)]
    return "\n".join([f"<h2>{escape(table.title)}</h2>", "<table>", *lines, "</table>"])
