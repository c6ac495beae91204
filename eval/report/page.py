"""One page with everything in it: opens from disk, offline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

from tokenreduce.draw import stylesheet

from ..sweep.store import DONE
from .columns import LEGEND, columns, notes, title
from .kept import kept
from .rows import Row

STYLE = """
h1 { font-size: 26px } h2 { margin-top: 42px; border-bottom: 1px solid var(--line) } h3 { margin-bottom: 4px }
table { border-collapse: collapse; font-size: 13px } th, td { padding: 3px 10px; text-align: right; white-space: nowrap }
th { position: sticky; top: 0; background: var(--raised); cursor: pointer }
td:first-child, th:first-child { text-align: left }
tbody tr:nth-child(odd) { background: var(--band) } .note { color: var(--quiet); max-width: 900px }
.kept td, .kept th { text-align: left; vertical-align: top; cursor: default; white-space: normal; max-width: 520px }
.kept img { display: block } .key { font-size: 13px; margin: 6px 0 }
.right { color: var(--good) } .wrong, .failed { color: var(--bad) }
section { overflow-x: auto } select, input { margin: 0 14px 8px 0 }
@media screen and (prefers-color-scheme: dark) { .js-plotly-plot { filter: invert(0.9) hue-rotate(180deg) } }
@media print {
  section { overflow: visible } .modebar { display: none }
  table { font-size: 9px } th, td { padding: 1px 4px; white-space: normal } tr, .js-plotly-plot, img { break-inside: avoid }
}
"""
SEARCH = "<input class=search placeholder='show rows that hold …' aria-label=search>"
SCRIPT = """
document.querySelectorAll('table.numbers').forEach(table => table.querySelectorAll('th').forEach((head, column) => {
  head.title += '; click to sort';
  head.onclick = () => {
    const body = table.tBodies[0], down = head.dataset.down = head.dataset.down === '1' ? '0' : '1';
    const value = row => { const t = row.cells[column].textContent, n = parseFloat(t); return isNaN(n) ? t : n };
    [...body.rows].sort((a, b) => (value(a) > value(b) ? 1 : value(a) < value(b) ? -1 : 0) * (down === '1' ? -1 : 1))
      .forEach(row => body.append(row));
  };
}));
const plots = () => [...document.querySelectorAll('.js-plotly-plot')];
addEventListener('beforeprint', () => plots().forEach(plot => Plotly.relayout(plot, {width: 700, autosize: false})));
addEventListener('afterprint', () => plots().forEach(plot => Plotly.relayout(plot, {width: null, autosize: true})));
document.querySelectorAll('select.budget').forEach(select => {
  const show = () => select.closest('section').querySelectorAll('tr[data-keep]')
    .forEach(row => row.hidden = row.dataset.keep !== select.value);
  select.onchange = show; show();
});
document.querySelectorAll('input.search').forEach(input => input.oninput = () =>
  input.closest('section').querySelectorAll('tbody tr')
    .forEach(row => row.hidden = !row.textContent.toLowerCase().includes(input.value.toLowerCase())));
"""


def page(
    rows: Sequence[Row], cells: Sequence[dict[str, Any]], control: str = "tokens", left_out: Sequence[str] = ()
) -> str:
    """The page as HTML, with plotly's script inside. ``left_out``: cells that the rows do not show."""
    from plotly.offline import get_plotlyjs

    from .figures import curves, heat_map, looks

    style = looks(rows)
    places = list(dict.fromkeys(row.place for row in rows))
    parts = [_head(rows, cells), "<h2>Accuracy against cost</h2>"]
    for place in places:
        own = [row for row in rows if row.place == place]
        if any(row.score is not None for row in own):
            parts += [f"<h3>{escape(title(own[0]))}</h3>", _plot(curves(own, style))]
    parts.append(
        "<h2>Per task</h2><p class=note>Scores, shares in percent; the darker, the more is kept of the unreduced quality.</p>"
    )
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        if any(row.relative is not None for row in own):
            parts += [f"<h3>{escape(model)}</h3>", _plot(heat_map(own))]
    parts += [
        "<h2>What was kept</h2>",
        kept(cells),
    ]
    parts += [
        "<h2>Numbers</h2><section>",
        SEARCH,
        *(_numbers([row for row in rows if row.place == place], control) for place in places),
    ]
    parts += ["</section>", _meaning(rows, control), _failures(rows, left_out)]
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>tokenreduce sweep</title>"
        "<meta name=viewport content='width=device-width, initial-scale=1'><link rel=icon href='data:,'>"
        f"<style>{stylesheet()}{STYLE}</style><script>{get_plotlyjs()}</script></head><body>{''.join(parts)}<script>{SCRIPT}</script></body></html>"
    )


def _plot(figure: Any) -> str:
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"responsive": True, "displaylogo": False})


def _head(rows: Sequence[Row], cells: Sequence[dict[str, Any]]) -> str:
    done = [cell for cell in cells if cell["status"] == DONE]
    counted = Counter(cell["status"] for cell in cells)
    states = ", ".join(f"{count} {state}" for state, count in counted.items())
    places = {(c["result"]["environment"]["device"], c["result"]["environment"]["cpu"]) for c in done}
    versions = {tuple(sorted(cell["identity"]["versions"].items())) for cell in cells}
    told = "; ".join(", ".join(f"{name} {version}" for name, version in entry) for entry in sorted(versions, key=str))
    asked = sorted({row.questions for row in rows if row.questions})
    return (
        f"<h1>Visual token reduction: {escape(', '.join(dict.fromkeys(row.model for row in rows)))}</h1>"
        f"<p class=note>{len(cells)} cells ({escape(states)}), {' or '.join(map(str, asked))} questions each. "
        f"{escape(told)}. On {escape('; '.join(' '.join(dict.fromkeys(p)) for p in sorted(places)))}.<br>"
        f"{escape(LEGEND)} Where all questions agree an interval has no width, and yet n questions cannot see shares below about "
        "3/n. "
        "Time to the first token includes the vision tower; median, lowest and highest of rounds in which the reduced and the "
        "unreduced model took turns on the same prompts.</p>"
    )


def _numbers(rows: Sequence[Row], control: str) -> str:
    shown = [row for row in rows if row.error is None]
    if not shown:
        return ""
    used = columns(shown, control)
    heads = "".join(f"<th title='{escape(c.legend, quote=True)}'>{escape(c.head)}</th>" for c in used)
    body = "".join("<tr>" + "".join(f"<td>{escape(c.text(row))}</td>" for c in used) + "</tr>" for row in shown)
    below = "".join(f"<p class=note>{escape(note)}</p>" for note in notes(shown))
    return (
        f"<h3>{escape(title(shown[0]))}</h3><table class=numbers><thead><tr>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table>{below}"
    )


def _meaning(rows: Sequence[Row], control: str) -> str:
    items = "".join(f"<li><b>{escape(c.head)}</b>: {escape(c.legend)}</li>" for c in columns(rows, control))
    return f"<h3>What the columns say</h3><ul class=note>{items}</ul>"


def _failures(rows: Sequence[Row], left_out: Sequence[str]) -> str:
    failed = [row for row in rows if row.error is not None]
    names = [f"{row.model} {row.task} {row.method} keep={row.keep}" for row in failed]
    items = "".join(
        f"<li><b>{escape(name)}</b>: <span class=failed>{escape(row.error or '')}</span></li>"
        for name, row in zip(names, failed)
    )
    older = "".join(f"<li>{escape(name)}</li>" for name in left_out)
    lost = f"<h2>Not done</h2><ul>{items}</ul>" if failed else ""
    return lost + (f"<h2>Of an earlier state, left out</h2><ul>{older}</ul>" if older else "")
