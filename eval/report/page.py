"""One page with everything in it: opens from disk, offline."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from ..recipe import Recipe
from ..sweep.store import DONE
from .columns import HEADS, cells_of
from .table import RESAMPLES, Row

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 0 24px 80px; max-width: 1500px; color: #222 }
h1 { font-size: 26px } h2 { margin-top: 42px; border-bottom: 1px solid #ddd } h3 { margin-bottom: 4px }
table { border-collapse: collapse; font-size: 13px } th, td { padding: 3px 10px; text-align: right; white-space: nowrap }
th { position: sticky; top: 0; background: #f4f4f4; cursor: pointer } td:first-child, th:first-child { text-align: left }
tbody tr:nth-child(odd) { background: #fafafa } .note { color: #555; max-width: 900px }
.kept td, .kept th { text-align: left; vertical-align: top; cursor: default; white-space: normal; max-width: 520px }
.kept img { display: block } .right { color: #167a2e } .wrong { color: #b3261e } .failed { color: #b3261e }
section { overflow-x: auto } select, input { font: inherit; margin: 0 14px 8px 0 }
"""
SCRIPT = """
document.querySelectorAll('table.numbers').forEach(table => table.querySelectorAll('th').forEach((head, column) => {
  head.title = 'click to sort';
  head.onclick = () => {
    const body = table.tBodies[0], down = head.dataset.down = head.dataset.down === '1' ? '0' : '1';
    const value = row => { const t = row.cells[column].textContent, n = parseFloat(t); return isNaN(n) ? t : n };
    [...body.rows].sort((a, b) => (value(a) > value(b) ? 1 : value(a) < value(b) ? -1 : 0) * (down === '1' ? -1 : 1))
      .forEach(row => body.append(row));
  };
}));
document.querySelectorAll('select.budget').forEach(select => {
  const show = () => select.closest('section').querySelectorAll('tr[data-keep]')
    .forEach(row => row.hidden = row.dataset.keep !== select.value);
  select.onchange = show; show();
});
document.querySelectorAll('input.search').forEach(input => input.oninput = () =>
  input.closest('section').querySelectorAll('tbody tr')
    .forEach(row => row.hidden = !row.textContent.toLowerCase().includes(input.value.toLowerCase())));
"""


def page(rows: Sequence[Row], cells: Sequence[dict[str, Any]]) -> str:
    """The page as HTML, with plotly's script inside."""
    from plotly.offline import get_plotlyjs

    from .figures import curves, heat_map, looks

    style = looks(rows)
    places = list(dict.fromkeys((row.model, row.task) for row in rows))
    parts = [_head(rows, cells), "<h2>Accuracy against cost</h2>"]
    for place in places:
        own = [row for row in rows if (row.model, row.task) == place]
        if any(row.score is not None for row in own):
            parts += [f"<h3>{escape(' · '.join(place))}</h3>", _plot(curves(own, style))]
    parts.append(
        "<h2>Per task</h2><p class=note>Scores in percent; the colour is the share of the unreduced score.</p>"
    )
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        if any(row.relative is not None for row in own):
            parts += [f"<h3>{escape(model)}</h3>", _plot(heat_map(own))]
    parts += ["<h2>What was kept</h2>", *(_kept(cells, task) for task in dict.fromkeys(row.task for row in rows))]
    parts += ["<h2>Numbers</h2>", _numbers(rows), _failures(rows)]
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>tokenreduce sweep</title>"
        "<meta name=viewport content='width=device-width, initial-scale=1'><link rel=icon href='data:,'>"
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body>{''.join(parts)}<script>{SCRIPT}</script></body></html>"
    )


def _plot(figure: Any) -> str:
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"responsive": True, "displaylogo": False})


def _head(rows: Sequence[Row], cells: Sequence[dict[str, Any]]) -> str:
    done = [cell for cell in cells if cell["status"] == DONE]
    states = ", ".join(f"{sum(row.state == s for row in rows)} {s}" for s in dict.fromkeys(row.state for row in rows))
    places = {(c["result"]["environment"]["device"], c["result"]["environment"]["cpu"]) for c in done}
    versions = {tuple(sorted(cell["identity"]["versions"].items())) for cell in cells}
    told = "; ".join(", ".join(f"{name} {version}" for name, version in entry) for entry in sorted(versions, key=str))
    asked = sorted({row.questions for row in rows if row.questions})
    return (
        f"<h1>Visual token reduction: {escape(', '.join(dict.fromkeys(row.model for row in rows)))}</h1>"
        f"<p class=note>{len(rows)} cells ({escape(states)}), {' or '.join(map(str, asked))} questions each. "
        f"{escape(told)}. On {escape('; '.join(' '.join(dict.fromkeys(p)) for p in sorted(places)))}.<br>Intervals cover 95 % of "
        f"{RESAMPLES} bootstrap samples of the questions; differences to random and ratios to the unreduced model are paired by "
        "question. Where all questions agree an interval has no width, and yet n questions cannot see shares below about 3/n. "
        "Time to the first token includes the vision tower; median, lowest and highest of rounds in which the reduced and the "
        "unreduced model took turns on the same prompts.</p>"
    )


def _kept(cells: Sequence[dict[str, Any]], task: str) -> str:
    found = [
        cell
        for cell in cells
        if cell["status"] == DONE and cell["cell"]["task"] == task and cell["result"].get("pictures")
    ]
    named = [(Recipe.from_dict(cell["cell"]["recipe"]), cell) for cell in found]
    plain = [cell for recipe, cell in named if not recipe.methods]
    reduced = sorted(
        (e for e in named if e[0].methods), key=lambda e: (e[0].name != "random", e[0].name, e[1]["cell"]["model"])
    )
    if not named:
        return ""
    first = plain[0] if plain else reduced[0][1]
    heads = "".join(
        f"<th>{escape(p['question'])}{_picture(p) if plain else ''}{_reply(first, p['doc_id'])}</th>"
        for p in first["result"]["pictures"]
    )
    keeps = sorted(
        {recipe.keep for recipe, _ in reduced}, key=lambda k: -min(_tokens(c) for r, c in reduced if r.keep == k)
    )
    options = "".join(f"<option value='{escape(keep)}'>keep {escape(keep)}</option>" for keep in keeps)
    lines = [
        f"<tr data-keep='{escape(recipe.keep)}'><td>{escape(recipe.name)}</td>"
        + "".join(f"<td>{_picture(p)}{_reply(cell, p['doc_id'])}</td>" for p in cell["result"]["pictures"])
        + "</tr>"
        for recipe, cell in reduced
    ]
    return (
        f"<section><h3>{escape(task)}</h3><select class=budget aria-label=budget>{options}</select>"
        f"<table class=kept><thead><tr><th>{'unreduced' if plain else ''}</th>{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></section>"
    )


def _tokens(cell: dict[str, Any]) -> float:
    return cell["result"]["measured"]["tokens_kept"] or 0.0


def _picture(picture: dict[str, Any]) -> str:
    return f"<img alt='what was kept' src='data:image/jpeg;base64,{picture['jpeg']}'>"


def _reply(cell: dict[str, Any], doc_id: Any) -> str:
    for q in cell["result"]["questions"]:
        if q["doc_id"] == doc_id:
            name = "" if q["score"] is None else "right" if q["score"] >= 0.5 else "wrong"
            mark = {"right": " ✓", "wrong": f" ✗ ({q['target']})", "": ""}[name]
            return f"<span class='{name}'>“{escape(str(q['reply'])[:80])}”{escape(mark)}</span>"
    return ""


def _numbers(rows: Sequence[Row]) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in (*HEADS[:1], "task", *HEADS[1:]))
    lines = [(row, cells_of(row)) for row in rows if row.error is None]
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in (own[0], row.task, *own[1:])) + "</tr>"
        for row, own in lines
    )
    search = "<input class=search placeholder='show rows that hold …' aria-label=search>"
    return (
        f"<section>{search}<table class=numbers><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></section>"
    )


def _failures(rows: Sequence[Row]) -> str:
    failed = [row for row in rows if row.error is not None]
    names = [f"{row.model} {row.task} {row.method} keep={row.keep}" for row in failed]
    items = "".join(
        f"<li><b>{escape(name)}</b>: <span class=failed>{escape(row.error or '')}</span></li>"
        for name, row in zip(names, failed)
    )
    return f"<h2>Not done</h2><ul>{items}</ul>" if failed else ""
