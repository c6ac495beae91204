"""Reports: intervals that cover, pairs that match, and a page that works in a browser without a network."""

from __future__ import annotations

import base64
import csv
import io
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tokenreduce.cli import app
from tokenreduce.eval.recipe import Recipe
from tokenreduce.eval.report import rows, table, write
from tokenreduce.eval.sweep import Cell, Store

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
    assert row.random_keep == "0.25"
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
        low, high = table.interval((chance.random(80) < 0.7).astype(float))
        hits += low <= 0.7 <= high
    assert 178 <= hits <= 199  # 95 % of 200 within three standard deviations; the percentile interval is a little short


def test_paired_intervals_are_shorter_than_unpaired_ones():
    chance = np.random.default_rng(6)
    hard = chance.random(200)
    a, b = (hard < 0.8).astype(float), (hard < 0.75).astype(float)
    low, high = table.interval(a - b)
    assert low > 0  # every difference points one way
    apart = [table.interval(x) for x in (a, b)]
    assert high - low < sum(top - bottom for bottom, top in apart) / 2


def test_files(sweep, tmp_path):
    out = tmp_path / "report"
    done = CliRunner().invoke(app, ["report", str(sweep), "--out", str(out), "--format", "csv,md"])
    assert done.exit_code == 0, done.output
    read = list(csv.DictReader((out / "table.csv").open()))
    assert [r["method"] for r in read[:4]] == ["unreduced", "random", "random", "fastv"]
    assert len(read) == 15
    text = (out / "table.md").read_text()
    assert "### demo, tr_demo_images, 60 questions" in text
    assert "| hiprune | 0.25 | 36 of 144 | 25.0 % |" in text
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
        (("{sweep}", "--format", "pdf"), "format='pdf'; allowed: csv, md, parquet, html"),
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
        assert "OutOfMemoryError: <16 GiB>" in page.locator("li").inner_text()
        assert "what <b>is</b> it?" in page.locator(".kept th").nth(1).inner_text()
        browser.close()
    assert problems == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
