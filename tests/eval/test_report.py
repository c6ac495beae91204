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
from tokenreduce.eval.recipe import Recipe
from tokenreduce.eval.report import rows, write
from tokenreduce.eval.statistics import interval, mean_replicates
from tokenreduce.eval.sweep import Cell, Store
from tokenreduce.layout import Layout
from tokenreduce.provenance import ImageTrace

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
