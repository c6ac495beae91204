"""Pictures of a report: below their questions, with a key, or why there are none."""

from __future__ import annotations

import re

import pytest
from report_cells import at, cost, drawn, result, stored

from tokenreduce.eval.recipe import Recipe
from tokenreduce.eval.report.kept import kept


def kept_part(cells):
    """The rows of pictures on the page, as lists of the cells' HTML, and all of it."""
    text = kept(cells)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text)
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows], text


def test_pictures_stand_below_their_questions_with_a_key(tmp_path):
    """Question 0 could not be drawn reduced: its place stays empty, and the reply is there."""
    key = [["kept", "rgb(150, 150, 150)", "rgb(255, 255, 255)"], ["dropped <", "rgb(55, 55, 55)", "rgb(55, 55, 55)"]]
    key += [["register", *key[0][1:]], key[0]]  # of one look
    cells = stored(
        tmp_path,
        (Recipe(), drawn(result([1, 1], cost(100, 1e9)), {"task": "t", "doc_id": 0}, {"task": "t", "doc_id": 1})),
        (
            at(0.25, "hiprune"),
            drawn(
                result([0, 1], cost(25, 1e9)), {"task": "t", "doc_id": 1, "key": key}, not_drawn=["t 0: broken file"]
            ),
        ),
    )
    (head, row), text = kept_part(cells)
    assert [h.partition("<")[0] for h in head] == ["unreduced", "question 0", "question 1"]
    assert row[0] == "hiprune"
    assert "<img" not in row[1]
    assert "wrong" in row[1]
    assert "<img" in row[2]
    assert "right" in row[2]
    assert text.count("<div class=key>") == 1
    assert re.findall(r"</i>(.*?)</span>", text) == ["kept / register", "dropped &lt;"]
    assert "background: rgb(55, 55, 55)" in text
    assert "Not drawn: t 0: broken file" in text


def test_an_error_is_wrong_and_questions_of_a_group_have_their_replies(tmp_path):
    made = result([1.0, 0.0], cost(100, 1e9), higher_is_better=False)
    made["questions"] = [
        q | {"doc_id": f"t/{q['doc_id']}", "reply": "red", "target": "blue"} for q in made["questions"]
    ]
    cells = stored(tmp_path, (Recipe(), drawn(made, {"task": "t", "doc_id": 0}, {"task": "t", "doc_id": 1})))
    ((_, first, second),), _ = kept_part(cells)
    assert "<span class='wrong'>“red” ✗ (blue)</span>" in first
    assert "<span class='right'>“red” ✓</span>" in second


@pytest.mark.parametrize(
    ("about", "told"),
    [({"not_drawn": ["t 0: no decoder"]}, "t 0: no decoder"), ({}, "no question was looked at")],
)
def test_the_page_says_why_nothing_is_drawn(tmp_path, about, told):
    cells = stored(tmp_path, (Recipe(), drawn(result([1.0], cost(100, 1e9)), **about)))
    assert f"Not drawn: {told}" in kept(cells)
    failed = [{**cell, "status": "failed"} for cell in cells]
    assert "Not drawn: no cell of it is done" in kept(failed)
