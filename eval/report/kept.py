"""The part of the page with pictures: what was kept of a few questions, and what was answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tokenreduce.draw import html_key

from ..recipe import Recipe
from ..sweep.store import DONE
from .points import Cell, labels, loaded, metrics_of


def kept(cells: Sequence[Cell]) -> str:
    """For every model and task a table of pictures with the key to them, or why there are none."""
    names = labels(cells)
    places: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        places.setdefault((names[loaded(cell)], cell["cell"]["task"]), []).append(cell)
    return "".join(_table(model, task, own) for (model, task), own in sorted(places.items()))


def _table(model: str, task: str, cells: Sequence[Cell]) -> str:
    done = [(Recipe.from_dict(cell["cell"]["recipe"]), cell) for cell in cells if cell["status"] == DONE]
    named = [(recipe, cell) for recipe, cell in done if cell["result"].get("pictures")]
    head = f"<h3>{escape(f'{model}, {task}')}</h3>"
    told = dict.fromkeys(reason for _, cell in done for reason in cell["result"].get("not_drawn", ()))
    reasons = (
        list(told)[:3] if told or named else ["no cell of it is done" if not done else "no question was looked at"]
    )
    why = "".join(f"<p class=note>Not drawn: {escape(reason)}</p>" for reason in reasons)
    if not named:
        return f"<section>{head}{why}</section>"
    plain = next((cell for recipe, cell in named if not recipe.methods), None)
    order = sorted((e for e in named if e[0].methods), key=lambda e: (e[0].name != "random", e[0].name))
    questions: dict[Any, Mapping[str, Any]] = {}
    for _, cell in [*((Recipe(), plain) for _ in "1" if plain is not None), *order]:
        for picture in cell["result"]["pictures"]:
            questions.setdefault(_place(picture), picture)
    heads = "".join(
        f"<th>{escape(picture['question'])}{'' if plain is None else _answered(plain, place)}</th>"
        for place, picture in questions.items()
    )
    keeps = sorted(
        {recipe.keep for recipe, _ in order}, key=lambda k: -min(_tokens(c) for r, c in order if r.keep == k)
    )
    options = "".join(f"<option value='{escape(keep)}'>keep {escape(keep)}</option>" for keep in keeps)
    lines = [
        f"<tr data-keep='{escape(recipe.keep)}'><td>{escape(recipe.name)}</td>"
        + "".join(f"<td>{_answered(cell, place)}</td>" for place in questions)
        + "</tr>"
        for recipe, cell in order
    ]
    entries = _key(
        [entry for _, cell in order for picture in cell["result"]["pictures"] for entry in picture.get("key", ())]
    )
    return (
        f"<section>{head}<select class=budget aria-label=budget>{options}</select>"
        f"<table class=kept><thead><tr><th>{'' if plain is None else 'unreduced'}</th>{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>{html_key(entries) if entries else ''}{why}</section>"
    )


def _key(entries: Sequence[Sequence[str]]) -> list[tuple[str, str, str]]:
    """One entry for all labels of a look."""
    labels: dict[tuple[str, str], dict[str, None]] = {}
    for label, fill, edge in entries:
        labels.setdefault((fill, edge), {})[label] = None
    return [(" / ".join(names), *look) for look, names in labels.items()]


def _place(picture: Mapping[str, Any]) -> tuple[str | None, Any]:
    return picture.get("task"), picture["doc_id"]


def _tokens(cell: Cell) -> float:
    return cell["result"]["measured"]["tokens_kept"] or 0.0


def _answered(cell: Cell, place: tuple[str | None, Any]) -> str:
    """The picture of a question, where the cell has one, and the reply."""
    picture = next((p for p in cell["result"]["pictures"] if _place(p) == place), None)
    drawn = "" if picture is None else f"<img alt='what was kept' src='data:image/jpeg;base64,{picture['jpeg']}'>"
    return drawn + _reply(cell, place)


def _reply(cell: Cell, place: tuple[str | None, Any]) -> str:
    task, doc_id = place
    for q in cell["result"]["questions"]:
        own = q.get("task", task)
        if task in (None, own) and q["doc_id"] in (doc_id, f"{own}/{doc_id}"):
            right = _is_right(cell, own or cell["cell"]["task"], q["score"])
            name = {None: "", True: "right", False: "wrong"}[right]
            mark = {None: "", True: " ✓", False: f" ✗ ({q['target']})"}[right]
            return f"<span class='{name}'>“{escape(str(q['reply'])[:80])}”{escape(mark)}</span>"
    return ""


def _is_right(cell: Cell, task: str, score: float | None) -> bool | None:
    """Of an entry between 0 and 1, whether it is nearer to the better end."""
    if score is None or not 0 <= score <= 1:
        return None
    about: Mapping[str, Any] = next(iter(metrics_of(cell, task).values()), {})
    return score >= 0.5 if about.get("higher_is_better", True) else score < 0.5
