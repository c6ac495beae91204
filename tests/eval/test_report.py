"""Reports: intervals that cover, pairs that match, and a page that works in a browser without a network."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tokenreduce.cli import app
from tokenreduce.draw import stylesheet, write_page
from tokenreduce.eval.metrics import Metric
from tokenreduce.eval.recipe import Recipe
from tokenreduce.eval.report import compared, rows, write
from tokenreduce.eval.report.columns import columns
from tokenreduce.eval.report.figures import pareto
from tokenreduce.eval.report.kept import kept
from tokenreduce.eval.report.points import tables
from tokenreduce.eval.statistics import interval, mean_replicates
from tokenreduce.eval.sweep import Cell, Store
from tokenreduce.layout import Layout
from tokenreduce.provenance import ImageTrace

METHODS = ("hiprune", "fastv")
KEEPS = (0.5, 0.25)
QUESTIONS = 60


def fake(recipe, chance, share):
    """A result in the form of ``Evaluator``; random answers with a fixed share of right ones."""
    draw = np.random.default_rng(len(str(recipe))).random(QUESTIONS)
    scores = [float(x < chance) for x in draw]
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "teal").save(buffer, "JPEG")
    picture = {"doc_id": 3, "question": "what <b>is</b> it?", "jpeg": base64.b64encode(buffer.getvalue()).decode()}
    return {
        "metric": "exact_match",
        "score": float(np.mean(scores)),
        "questions": [{"doc_id": i, "score": s, "reply": "red", "target": "red"} for i, s in enumerate(scores)],
        "measured": {
            "tokens_in": 144.0, "tokens_kept": 144 * share, "equivalent_tokens": 144 * share, "flops": 1e9 * share,
            "flops_unreduced": 1e9, "ttft_ms": 20.0, "tokens_per_s": 50.0, "method_ms": 1.0, "peak_mib": 900.0,
        },
        "first_token": {"speedup": {"median": 2.0, "low": 1.5, "high": 2.5}} if recipe.methods else None,
        "empty_answers": 0,
        "pictures": [picture],
        "environment": {"device": "cpu", "cpu": "a processor"},
    }  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "out"
    store = Store(out)
    with store.locked():
        for task in ("tr_demo_images", "tr_demo_video"):
            store.write(Cell("demo", task), "done", result=fake(Recipe(), 1.0, 1.0))
            for keep in KEEPS:
                for name, chance in (("random", 0.5), ("hiprune", 0.95), ("fastv", 0.8)):
                    recipe = Recipe.of(name, keep)
                    store.write(Cell("demo", task, recipe), "done", result=fake(recipe, chance, keep))
        failed = {"kind": "out of memory", "text": "OutOfMemoryError: <16 GiB>", "traceback": ""}
        store.write(Cell("demo", "tr_demo_images", Recipe.of("tome", 0.5)), "failed", error=failed)
    return out


def test_rows_relate_to_the_unreduced_model_and_pair_with_random(sweep):
    found = {(r.task, r.method, r.keep): r for r in rows(Store(sweep).everything())}
    assert len(found) == 15
    row = found["tr_demo_images", "hiprune", "0.25"]
    control = found["tr_demo_images", "random", "0.25"]
    assert row.control == "random 0.25"
    assert row.vs_random == pytest.approx(row.score - control.score)
    assert row.vs_random_low <= row.vs_random <= row.vs_random_high
    assert row.score_low <= row.score <= row.score_high
    assert row.relative == row.score  # the unreduced model has everything right
    assert (row.token_share, row.flops_share, row.ttft_share) == (0.25, 0.25, 0.5)
    plain = found["tr_demo_images", "unreduced", "1.0"]
    assert (plain.relative, plain.ttft_share, plain.vs_random) == (1.0, 1.0, None)
    assert "16 GiB" in found["tr_demo_images", "tome", "0.5"].error
    assert control.vs_random is None


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    chance = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        low, high = interval(mean_replicates("t", (chance.random(80) < 0.7).astype(float), [None] * 80))
        hits += low <= 0.7 <= high
    assert 178 <= hits <= 199  # 95 % of 200 within three standard deviations; the percentile interval is a little short


def test_paired_intervals_are_shorter_than_unpaired_ones():
    chance = np.random.default_rng(6)
    hard = chance.random(200)
    a, b = (hard < 0.8).astype(float), (hard < 0.75).astype(float)
    low, high = interval(mean_replicates("t", a - b, [None] * 200))
    assert low > 0  # every difference points one way
    apart = [interval(mean_replicates("t", x, [None] * 200)) for x in (a, b)]
    assert high - low < sum(top - bottom for bottom, top in apart) / 2


def test_files(sweep, tmp_path):
    out = tmp_path / "report"
    done = CliRunner().invoke(app, ["report", str(sweep), "--out", str(out), "--format", "csv,md"])
    assert done.exit_code == 0, done.output
    read = list(csv.DictReader((out / "table.csv").open()))
    assert [r["method"] for r in read[:4]] == ["unreduced", "random", "random", "fastv"]
    assert len(read) == 15
    text = (out / "table.md").read_text()
    assert "### demo, tr_demo_images, exact_match (mean, higher is better), 60 questions" in text
    assert "| hiprune | 0.25 | 36 of 144 | 25.0 % |" in text
    assert "Brackets are 95% intervals" in text
    write(sweep, out, ["csv"])  # again: its own files
    (out / "table.md").write_text("mine")
    write(sweep, tmp_path / "other", ["md"])
    with pytest.raises(ValueError, match=r"table\.md"):
        write(sweep, out, ["md"])


def test_parquet_equals_csv(sweep, tmp_path):
    parquet = pytest.importorskip(
        "pyarrow.parquet", reason="pyarrow is not installed; pip install 'tokenreduce[report]'"
    )
    csv_file, parquet_file = write(sweep, tmp_path, ["csv", "parquet"])
    numbers = parquet.read_table(parquet_file).to_pylist()
    texts = list(csv.DictReader(csv_file.open()))
    assert [row["score"] for row in numbers] == [float(row["score"]) if row["score"] else None for row in texts]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("{empty}",), "holds no cells of a sweep"),
        (("nowhere",), "is no folder"),
        (("{sweep}", "--format", "pdf"), "format='pdf'; allowed: csv, md, tex, json, parquet, html"),
    ],
)
def test_bad_input_teaches(sweep, tmp_path, arguments, told):
    filled = [a.format(empty=tmp_path, sweep=sweep) for a in arguments]
    found = CliRunner().invoke(app, ["report", *filled, "--out", str(tmp_path / "out")])
    assert found.exit_code == 2
    assert told in " ".join(found.output.split())


def test_missing_package_names_the_pip_command(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr("tokenreduce.eval.report.files.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'tokenreduce\[report\]'"):
        write(sweep, tmp_path, ["html"])


def browser_path():
    return next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )


def test_page_works_in_a_browser_without_network(sweep, tmp_path):
    pytest.importorskip("plotly", reason="plotly is not installed; pip install 'tokenreduce[report]'")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed; pip install playwright"
    )
    if browser_path() is None:
        pytest.skip("no Chromium here; apt-get install chromium")
    (file,) = write(sweep, tmp_path, ["html"])
    problems, asked = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        context = browser.new_context(offline=True)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_selector(".js-plotly-plot .scatterlayer .trace")
        assert page.locator(".js-plotly-plot").count() == 3  # curves of two tasks, a heat map
        points = page.locator(".js-plotly-plot").first.locator(".scatterlayer .point").count()
        assert points >= 3 * 7  # seven cells of a task on three axes
        page.get_by_text("intervals on").first.click()
        page.wait_for_selector(".errorbar")
        shown = page.locator("tr[data-keep]:visible").count()
        page.locator("select.budget").first.select_option("0.25")
        assert page.locator("tr[data-keep='0.25']:visible").count() > 0
        assert page.locator("tr[data-keep]:visible").count() == shown == 6
        page.locator("input.search").fill("hiprune")
        assert page.locator("table.numbers tbody tr:visible").count() == 4
        page.locator("table.numbers th").nth(5).click()
        page.locator("input.search").fill("")
        # one hue by lightness: the heat map's cells darken with what is kept
        fills = page.evaluate("document.querySelectorAll('.js-plotly-plot')[2]._fullData[0].colorscale.map(c => c[1])")
        light = [sum(int(x) for x in re.findall(r"\d+", fill)) for fill in fills]
        assert light == sorted(light, reverse=True)
        background = "getComputedStyle(document.body).backgroundColor"
        page.emulate_media(color_scheme="dark")
        assert sum(int(x) for x in re.findall(r"\d+", page.evaluate(background))) < 3 * 60
        page.emulate_media(media="print", color_scheme="light")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.wait_for_function("document.querySelector('.js-plotly-plot').offsetWidth >= 700")
        widths = page.evaluate(
            "[...document.querySelectorAll('.js-plotly-plot')].map(p => [p._fullLayout.width, "
            "Math.max(...[...p.querySelectorAll('.legend .legendtext')].map(t => t.getBoundingClientRect().right "
            "- p.getBoundingClientRect().left), 0)])"
        )
        assert all(right <= width == 700 for width, right in widths)
        assert "OutOfMemoryError: <16 GiB>" in page.locator("li").last.inner_text()
        assert "what <b>is</b> it?" in page.locator(".kept th").nth(1).inner_text()
        browser.close()
    assert problems == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


# ------------------------------------------------------------------ what the numbers say


def cost(kept, flops, whole=100.0):
    return {
        "tokens_in": whole, "tokens_kept": kept, "equivalent_tokens": kept, "flops": flops, "flops_unreduced": 1e9,
        "kv_bytes": 2.0**20 * kept, "kv_bytes_unreduced": 2.0**20 * whole, "ttft_ms": 20.0, "tokens_per_s": 50.0,
        "method_ms": 1.0, "peak_mib": 900.0,
    }  # fmt: skip


def result(marks, measured, task="t", **about):
    """A result with one task, one metric ``m``, and the entries ``marks``; ``about`` changes what is told of the metric."""
    metric = {"value": float(np.mean(marks)), "higher_is_better": True, "aggregation": "mean"} | about
    questions = [
        {"doc_id": i, "task": task, "cluster": None, "score": x, "scores": {"m": x}, "reply": "", "target": ""}
        for i, x in enumerate(marks)
    ]
    return {
        "tasks": {task: {"version": 1.0, "questions": len(marks), "metrics": {"m": metric}}}, "metric": "m",
        "score": metric["value"], "questions": questions, "measured": measured, "first_token": None, "empty_answers": 0,
        "whole_prefill": {"flops": 64.0, "flops_unreduced": 100.0}, "pictures": [],
        "environment": {"device": "cpu", "cpu": "a processor"},
    }  # fmt: skip


def stored(out, *cells):
    """The cells of a store: pairs of a recipe, or a cell, and its result."""
    store = Store(out / "sweep")
    with store.locked():
        for cell, made in cells:
            cell = cell if isinstance(cell, Cell) else Cell("demo", "t", cell)
            store.write(cell, "done", result=made)
    return store.everything()


def at(keep, name="random", **parameters):
    return Recipe.of(name, keep, parameters)


@pytest.mark.parametrize(
    ("metric", "gain", "kept"),
    [
        (Metric("m"), (0.5 - 0.25), (0.25 / 0.5, 0.5 / 0.25)),
        (Metric("m", higher_is_better=False), (0.25 - 0.5), (0.5 / 0.25, 0.25 / 0.5)),
    ],
)
def test_which_way_is_better(metric, gain, kept):
    assert metric.gain(0.5, 0.25) == gain
    assert (metric.kept(0.25, 0.5), metric.kept(0.5, 0.25)) == kept
    assert metric.kept(0.0, 0.0) == 1.0
    assert Metric("m").kept(0.5, 0.0) is None
    assert Metric("m", higher_is_better=False).kept(0.5, 0.0) == 0.0  # errors where there were none


def test_the_front_of_an_error_rate_is_low():
    points = [(0.2, 0.5), (0.5, 0.1), (0.7, 0.3)]
    assert pareto(points) == [(0.2, 0.5)]
    assert pareto(points, higher_is_better=False) == [(0.2, 0.5), (0.5, 0.1)]


def test_an_error_rate_that_is_higher_is_a_loss(tmp_path):
    error = {"higher_is_better": False}
    cells = stored(
        tmp_path,
        (Recipe(), result([0, 0, 0, 1], cost(100, 1e9), **error)),
        (at(0.25), result([0, 0, 0, 0], cost(25, 0.25e9), **error)),
        (at(0.25, "hiprune"), result([0, 1, 0, 0], cost(25, 0.25e9), **error)),
    )
    plain, chance, row = rows(cells)
    assert (plain.score, chance.score, row.score) == (0.25, 0.0, 0.25)
    assert row.vs_random == -0.25
    assert (row.relative, chance.relative) == (1.0, None)  # an error rate of 0 is no multiple of 25 %
    shown = {c.head: c.text(row) for c in columns([plain, chance, row])}
    assert shown["gain over random at equal tokens"].startswith("-25.0 pp")


def test_percent_stand_at_shares_only(tmp_path):
    total = {"aggregation": "total", "replicates": [1500.0] * 1000 + [1450.0] * 1000}
    points = {"value": 1475.0} | total
    other = {"value": 1200.0} | total | {"replicates": [1200.0] * 1000 + [1250.0] * 1000}
    cells = stored(
        tmp_path,
        (Recipe(), result([5.0, 9.0], cost(100, 1e9), **points)),
        (at(0.25), result([5.0, 9.0], cost(25, 0.25e9), **other)),
        (at(0.25, "hiprune"), result([5.0, 9.0], cost(25, 0.25e9), **points)),
    )
    row = rows(cells)[-1]
    assert not row.share
    assert (row.vs_random, row.vs_random_low, row.vs_random_high) == (275.0, 200.0, 300.0)
    shown = {c.head: c.text(row) for c in columns([row])}
    assert shown["score"] == "1,475 ± 25.006 [1,450, 1,500]"
    assert shown["gain over random at equal tokens"] == "+275 [+200, +300]"
    assert shown["of unreduced"] == "100.0 % [100, 100]"
    # a mean of 0 to 100 is no share, either
    cells = stored(tmp_path / "b", (Recipe(), result([100.0, 50.0], cost(100, 1e9))))
    assert {c.head: c.text(r) for r in rows(cells) for c in columns([r])}["score"].startswith("75 ±")


def test_no_interval_without_a_reason(tmp_path):
    about = {"aggregation": "bleu", "without_interval": "its aggregation takes 3 s"}
    cells = stored(tmp_path, (Recipe(), result([0.5, 0.1], cost(100, 1e9), **about)))
    (row,) = rows(cells)
    assert (row.score_low, row.without_interval) == (None, "its aggregation takes 3 s")
    (text,) = write(tmp_path / "sweep", tmp_path / "report", ["md"])
    assert "No interval: its aggregation takes 3 s" in text.read_text()


@pytest.mark.parametrize(("control", "expected"), [("tokens", (4 + 8) / 16), ("flops", (0.75 * 8 + 0.25 * 4) / 8)])
def test_the_control_costs_the_same(tmp_path, control, expected):
    """Random: 4 of 8 right at 40 tokens and 0.40 GFLOPs, all at 80 tokens and 0.80; a method at 60 tokens and 0.70."""
    half, all_of = [1, 1, 1, 1, 0, 0, 0, 0], [1] * 8
    cells = stored(
        tmp_path,
        (Recipe(), result(all_of, cost(100, 1e9))),
        (at(0.4), result(half, cost(40, 0.4e9))),
        (at(0.8), result(all_of, cost(80, 0.8e9))),
        (at(0.4, "fastv"), result(half, cost(60, 0.7e9))),
        (at(0.2, "hiprune"), result(half, cost(20, 0.2e9))),
    )
    found = {row.method: row for row in rows(cells, control=control)}
    assert found["fastv"].control == "random 0.4 to random 0.8"
    assert found["fastv"].vs_random == pytest.approx(0.5 - expected)
    assert found["fastv"].vs_random_low <= found["fastv"].vs_random <= found["fastv"].vs_random_high
    assert found["hiprune"].vs_random is None
    assert found["hiprune"].control == "outside what random was measured at"
    axis = {"tokens": "tokens", "flops": "decoder FLOPs"}[control]
    assert f"gain over random at equal {axis}" in {c.head for c in columns(list(found.values()), control)}


def test_seeds_are_one_row_and_all_of_them_the_control(tmp_path):
    cells = stored(
        tmp_path,
        (Recipe(), result([1, 1, 1, 1], cost(100, 1e9))),
        *((at(0.4, seed=s), result(marks, cost(40, 0.4e9))) for s, marks in enumerate(([1, 1, 0, 0], [1, 0, 0, 0]))),
        (at(0.4, "hiprune"), result([1, 1, 1, 0], cost(40, 0.4e9))),
    )
    _, chance, row = rows(cells)
    assert (chance.method, chance.seeds, chance.score) == ("random", 2, 0.375)
    assert chance.seed_sd == pytest.approx(np.std([0.5, 0.25], ddof=1))
    assert row.vs_random == 0.375


def test_seeds_of_drawn_answers_are_one_row(tmp_path):
    def drawn(recipe, *marks, tokens=40):
        return [
            (Cell("demo", "t", recipe, seed=seed), result(right, cost(tokens, tokens * 1e7)))
            for seed, right in enumerate(marks)
        ]

    whole = drawn(Recipe(), [1, 1, 1, 1], [1, 1, 1, 0], tokens=100)
    cells = stored(tmp_path, *whole, *drawn(at(0.4, "hiprune"), [1, 1, 0, 0], [1, 0, 0, 0]))
    (table,) = tables(cells)
    assert not table.left_out
    plain, row = rows(cells)
    assert [(r.seeds, r.score) for r in (plain, row)] == [(2, 0.875), (2, 0.375)]
    assert row.seed_sd == pytest.approx(np.std([0.5, 0.25], ddof=1))
    assert row.relative == pytest.approx(0.375 / 0.875)


def test_rows_are_told_apart_by_what_differs(tmp_path):
    made = {}
    for model in ("a/step-1/hf", "a/step-2/hf"):
        folder = tmp_path / model
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"name": model}))
        for args in ({}, {"max_pixels": 5}):
            for limit in (None, 4):
                cell = Cell(str(folder), "t", Recipe(), model_args=args, limit=limit)
                made[cell.key] = (cell, result([1, 0], cost(100, 1e9)))
    found = rows(stored(tmp_path, *made.values()))
    assert len({row.model for row in found}) == len(found) == 8
    assert "step-1/hf (limit=4, max_pixels=5)" in {row.model for row in found}
    assert "step-2/hf (limit=None, max_pixels=default)" in {row.model for row in found}


def test_one_state_of_the_code_is_the_baseline_of_its_own_rows(tmp_path):
    cells = stored(
        tmp_path,
        (Recipe(), result([1, 1, 1, 1], cost(100, 1e9))),
        (at(0.4, "hiprune"), result([1, 1, 1, 0], cost(40, 0.4e9))),
    )
    older = [
        {**c, "identity": {**c["identity"], "model_files": "other"}, "written": "2020-01-01T00:00:00"} for c in cells
    ]
    found = rows([*older, *cells])
    assert [(row.method, row.relative) for row in found] == [("unreduced", 1.0), ("hiprune", 0.75)]
    store = Store(tmp_path / "sweep")
    for cell in older:
        key = cell["key"][::-1]
        (store.cells / f"{key}.json").write_text(json.dumps({**cell, "key": key}))
    (text,) = write(tmp_path / "sweep", tmp_path / "report", ["md"])
    assert "Of an earlier state of weights, questions or code, and left out" in text.read_text()
    assert "hiprune keep=0.4 of 2020-01-01" in text.read_text()


def test_any_two_rows_are_tested_in_pairs(tmp_path):
    first, second = [1] * 12 + [0] * 4, [1] * 3 + [0] * 13
    cells = stored(
        tmp_path,
        (Recipe(), result([1] * 16, cost(100, 1e9))),
        (at(0.4), result(second, cost(40, 0.4e9))),
        (at(0.4, "hiprune"), result(first, cost(40, 0.4e9))),
        (at(0.4, "fastv"), result(second, cost(40, 0.4e9))),
    )
    found = {row.method: row for row in compared(cells, rows(cells), "fastv", "holm")}
    assert found["hiprune"].difference == 9 / 16
    assert (found["hiprune"].test, found["hiprune"].against) == ("McNemar, exact", "fastv 0.4")
    assert found["hiprune"].p_value == pytest.approx(2 / 2**9)  # nine of nine, both tails
    assert found["random"].p_value == 1.0
    assert found["hiprune"].p_corrected == pytest.approx(4 / 2**9)  # two comparisons
    assert found["fastv"].against is None
    assert found["unreduced"].against is None  # another budget
    assert {r.method: r.difference for r in compared(cells, rows(cells), "unreduced")}["fastv"] == -13 / 16
    with pytest.raises(ValueError, match=r"against='tome' is no row.*hiprune:0\.4"):
        compared(cells, rows(cells), "tome")


def test_flops_say_what_they_count_and_bytes_are_shown(tmp_path):
    cells = stored(tmp_path, (at(0.25, "hiprune"), result([1, 0], cost(25, 0.3e9))))
    shown = {c.head: c.text(row) for row in rows(cells) for c in columns([row])}
    assert (shown["decoder FLOPs"], shown["prefill FLOPs"], shown["KV"]) == ("30.0 %", "64.0 %", "25.0 %")


def drawn(result, *pictures, **about):
    made = [{"jpeg": "", "question": f"question {p['doc_id']}", "key": []} | p for p in pictures]
    return result | {"pictures": made, "not_drawn": []} | about


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


def test_both_pages_have_one_stylesheet(sweep, tmp_path):
    pytest.importorskip("plotly", reason="plotly is not installed; pip install 'tokenreduce[report]'")
    (file,) = write(sweep, tmp_path, ["html"])
    trace = ImageTrace(0, Layout(2, 2), torch.arange(4), ())
    write_page(tmp_path / "page.html", trace, Image.new("RGB", (28, 28)))
    for page in (file, tmp_path / "page.html"):
        assert stylesheet() in page.read_text()
    assert stylesheet().count("prefers-color-scheme") + stylesheet().count("light-dark(") > 0
    assert "@media print" in stylesheet()


def test_the_metric_can_be_chosen(sweep):
    assert {row.metric for row in rows(Store(sweep).everything(), metric="exact_match") if row.error is None} == {
        "exact_match"
    }
    with pytest.raises(ValueError, match="metric='bleu' is none of this sweep; allowed: exact_match"):
        rows(Store(sweep).everything(), metric="bleu")


def test_exports_hold_the_same_numbers(sweep, tmp_path):
    _, tex, made = write(sweep, tmp_path, ["md", "tex", "json"], against="random", correction="bh")
    content = json.loads(made.read_text())
    by_name = {(row["task"], row["method"], row["keep"]): row for row in content["rows"]}
    row = by_name["tr_demo_images", "hiprune", "0.25"]
    assert row["difference"] == row["vs_random"]  # the same random row, at equal tokens
    assert 0 < row["p_value"] <= row["p_corrected"] < 0.05
    text = tex.read_text()
    assert r"\toprule" in text
    assert rf"hiprune & 0.25 & 36 of 144 & 25.0 \% & {100 * row['score']:.1f} \% $\pm$" in text
    assert r"tr\_demo\_images" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2


def test_scores_that_are_no_number_are_null(tmp_path):
    from tokenreduce.eval.results import write_json

    write_json(tmp_path / "a.json", {"score": float("nan"), "rows": [1.0, float("inf")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"score": None, "rows": [1.0, None]}
    assert "NaN" not in (tmp_path / "a.json").read_text()
