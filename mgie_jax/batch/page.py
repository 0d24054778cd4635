"""The contact sheet of a run: one HTML file that shows every edit, by links to the pictures beside it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from html import escape
from urllib.parse import quote

from mgie_jax.batch.extras import thumbnail
from mgie_jax.batch.store import Record
from mgie_jax.paths import AnyPath
from mgie_jax.weights.atomic import write_text

PAGE = "index.html"

# `content-visibility` and lazy pictures keep a page of thousands quick: what is off the screen costs nothing.
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Edited photos</title>
<style>
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 0 auto; max-width: 1800px; padding: 0 24px 48px; }
header { display: flex; flex-wrap: wrap; gap: 8px 24px; align-items: baseline; position: sticky; top: 0; z-index: 1;
  padding: 16px 0; background: Canvas; }
h1 { font-size: 20px; margin: 0; }
header p { margin: 0; color: GrayText; }
input { font: inherit; padding: 6px 10px; margin-left: auto; width: min(320px, 100%); box-sizing: border-box; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); gap: 20px; }
article { border: 1px solid color-mix(in srgb, GrayText 35%, transparent); border-radius: 8px; padding: 12px;
  content-visibility: auto; contain-intrinsic-size: auto 320px; overflow-wrap: anywhere; }
article[hidden] { display: none; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; }
.pair img { width: 100%; height: auto; display: block; border-radius: 4px; background: #8883; }
h2 { font-size: 15px; margin: 10px 0 4px; }
article p { margin: 4px 0; }
.small { color: GrayText; font-size: 13px; }
.error { color: light-dark(#b00020, #ff8a80); }
</style>
</head>
<body>
"""
_TAIL = """</main>
<script>
const find = document.querySelector("input"), shown = document.querySelector("output");
const all = [...document.querySelectorAll("article")].map(card => [card, card.textContent.toLowerCase()]);
find.addEventListener("input", () => {
  const words = find.value.toLowerCase().split(/\\s+/);
  let count = 0;
  for (const [card, text] of all) {
    card.hidden = !words.every(word => text.includes(word));
    count += !card.hidden;
  }
  shown.textContent = find.value.trim() ? `${count} shown` : "";
});
</script>
</body>
</html>
"""


def write_page(path: AnyPath, done: Iterable[Record], broken: Iterable[Record], there: Collection[str]) -> None:
    """Write the page.

    Args:
      done, broken: lines of results.jsonl and errors.jsonl.
      there: names of the files in the page's folder.
    """
    edits, errors = [_edit(line, there) for line in done], [_error(line) for line in broken]
    failed = f", {len(errors)} failed" if errors else ""
    head = (
        f"<header><h1>Edited photos</h1><p>{len(edits)} edited{failed} <output></output></p>"
        '<input type="search" placeholder="Find" aria-label="Find"></header>\n<main>\n'
    )
    write_text(path, "".join([_HEAD, head, *errors, *edits, _TAIL]))


def _edit(line: Record, there: Collection[str]) -> str:
    name, (width, height) = line["output"], line["size"]
    small = thumbnail(name)
    before = _picture(small, "before", width, height) if small in there else "<span></span>"
    after = f'<a href="{_link(name)}">{_picture(name, "after", width, height)}</a>'
    note = f'<p class="small">{_text(line["note"])}</p>' if line["note"] else ""
    return (
        f'<article><div class="pair">{before}{after}</div><h2>{_text(line["instruction"])}</h2>'
        f"<p>{_text(line['expressive'])}</p>{note}"
        f'<p class="small">{_text(name)}, seed {line["seed"]}, of {_text(line["photo"])}</p></article>\n'
    )


def _error(line: Record) -> str:
    return (
        f'<article><p class="error">{_text(line["error"])}</p><h2>{_text(line["instruction"])}</h2>'
        f'<p class="small">line {line["line"]}, seed {line["seed"]}, of {_text(line["photo"])}</p></article>\n'
    )


def _picture(name: str, what: str, width: int, height: int) -> str:
    return f'<img src="{_link(name)}" alt="{what}" loading="lazy" decoding="async" width="{width}" height="{height}">'


def _link(name: str) -> str:
    return escape(quote(f"./{name}"))


def _text(text: str) -> str:
    """As HTML; bytes of a file's name that are no text show as question marks."""
    return escape(str(text).encode("utf-8", "replace").decode())
