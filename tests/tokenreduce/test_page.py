"""The page of ``tokenreduce inspect``: one file, complete, and in a browser it says what the trace says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlavaNextImageProcessor
from typer.testing import CliRunner

import tokenreduce as tr
from tokenreduce.cli import app
from tokenreduce.draw import write_page
from tokenreduce.eval import demo
from tokenreduce.layout import Layout
from tokenreduce.provenance import ImageTrace, StageTrace

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def traced():
    model, processor = demo.load()
    question = next(q for q in demo.questions("test", 20) if len(q.scene.things) >= 4)
    inputs = processor(images=[question.image], text=[demo.prompt(question.question)], return_tensors="pt")
    with tr.wrapped(model, tr.ToMe(keep=0.5), tr.HiPrune(keep=0.5), tr.FastV(layer=2, keep=16)), torch.no_grad():
        model(**inputs)
        return tr.trace(model), question.image, processor


@pytest.fixture(scope="module")
def page(traced, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(
        path, *traced, title="</script> & <b>", facts=[("prompt", "</script><script>alert(1)</script>")], side=300
    )
    return path


def content(path):
    text = path.read_text()
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])


def only(path):
    """The single picture of a page."""
    (picture,) = content(path)["pictures"]
    return picture


def test_the_page_is_complete_in_itself(page, traced):
    data, text = only(page), page.read_text()
    trace = traced[0].images[0]
    assert "http" not in text.replace("http-equiv", "")
    assert [step["label"] for step in data["steps"]][-1] == "fastv, layer 2 on"
    assert len(data["steps"]) == len(trace.stages) + 1
    last = data["steps"][-1]
    assert last["owner"] == trace.stages[-1].assign.tolist()
    assert last["seats"] == trace.stages[-1].seats.tolist()
    assert last["score"][last["owner"].index(0)] == pytest.approx(
        float(trace.stages[-1].score[last["owner"].index(0)]), rel=1e-4
    )
    assert data["steps"][0]["heat"] is None
    assert data["places"][13] == [25, 25, 50, 50]
    assert content(page)["facts"] == [["prompt", "</script><script>alert(1)</script>"]]


def test_places_of_tiles_lie_in_their_panel(tmp_path):
    layout = Layout(2, 4, cells=(0, 1, 2, 3, 4, 5, 8, 9, 6, 7, 10, 11), views=(Layout(2, 2),) * 3)
    stage = StageTrace(
        "projector", None, "made", torch.arange(12), torch.arange(12), torch.arange(12), None, (), torch.arange(12.0)
    )
    processor = LlavaNextImageProcessor(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=[[56, 112]]
    )
    image = ImageTrace(0, layout, torch.arange(12), (stage,))
    write_page(tmp_path / "tiles.html", image, Image.new("RGB", (224, 112)), processor, side=200)
    data = only(tmp_path / "tiles.html")
    assert data["width"] == 410
    assert data["places"][3] == [100, 50, 200, 100]
    assert data["places"][6] == [310, 0, 360, 50]
    assert data["names"][6] == "view 2, row 0, column 0"


def test_pages_are_not_replaced_unless_asked(page, traced):
    before = page.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_page(page, *traced)
    assert page.read_bytes() == before
    with pytest.raises(ValueError, match=r"\.html"):
        write_page(page.with_suffix(".pdf"), *traced)


def test_inspect_writes_a_page(tmp_path):
    def call(*arguments):
        return CliRunner().invoke(app, ["inspect", "--model", "demo", *map(str, arguments)])

    out = tmp_path / "page.html"
    arguments = ("--method", "fastv", "--keep", "0.25", "--max-new-tokens", 2, "--side", 200, "--out")
    result = call(*arguments, out)
    assert result.exit_code == 0, result.output
    facts = dict(content(out)["facts"])
    assert facts["answer"] in " ".join(result.output.split())
    assert "FastV(keep=0.25" in facts["methods"]
    again = call(*arguments, out)
    assert again.exit_code == 2
    assert "--overwrite" in " ".join(again.output.split())
    assert call(*arguments, out, "--overwrite").exit_code == 0
    wrong = call(*arguments, tmp_path / "page.pdf")
    assert wrong.exit_code == 2
    assert ".html" in wrong.output


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path; on Debian: apt-get install chromium")
def test_in_a_browser(page, traced):
    api = pytest.importorskip("playwright.sync_api", reason="pip install 'tokenreduce[dev]' brings playwright")
    trace, data = traced[0].images[0], only(page)
    last = trace.stages[-1]
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        view, problems, asked = browser.new_page(viewport={"width": 900, "height": 1200}), [], []
        view.on("pageerror", lambda error: problems.append(str(error)))
        view.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
        view.on("request", lambda request: asked.append(request.url))
        view.goto(Path(page).as_uri())

        def told(token):
            box = view.locator("#marks").bounding_box()
            left, top, right, bottom = data["places"][token]
            across, down = box["width"] / data["width"], box["height"] / data["height"]
            view.mouse.move(box["x"] + (left + right) / 2 * across, box["y"] + (top + bottom) / 2 * down)
            return view.locator("#about").inner_text()

        def painted():
            return view.evaluate(
                "document.getElementById('marks').getContext('2d').getImageData(0, 0, 300, 300).data.some(x => x)"
            )

        assert view.title() == "</script> & <b>"
        assert view.locator("#label").inner_text() == "fastv, layer 2 on"
        assert not painted()
        kept, gone = last.assign.argmax().item(), last.assign.argmin().item()
        text = told(kept)
        assert f"token {kept} of 144" in text
        assert f"survivor {last.assign[kept] + 1} of 16, at position {last.seats[-1]} of the sequence" in text
        assert f"score: {float(f'{last.score[kept]:.6g}'):.4g}"[:12] in text
        assert painted()
        assert "dropped by" in told(gone)
        view.locator("#step").fill("5")  # after the last block of the tower
        merged = trace.stages[4].assign
        group = merged.mode().values
        token = (merged == group).nonzero()[0].item()
        assert f"one of {(merged == group).sum()} source tokens" in told(token)
        assert view.locator("#modes").is_hidden()
        view.locator("#step").fill("0")
        assert view.locator("#text").inner_text() == "all 144 tokens kept"
        assert "kept as it is" in told(gone)
        before = view.locator("#picture").get_attribute("src")
        view.locator("#step").fill("7")
        view.locator("input[value=heat]").check()
        assert view.locator("#picture").get_attribute("src") not in (before, data["steps"][7]["picture"])
        assert view.evaluate("document.getElementById('picture').naturalWidth") == 300
        browser.close()
    assert problems == []
    assert all(url.startswith(("file:", "data:")) for url in asked)


@pytest.fixture
def video(tmp_path):
    """A page of three frames of 2 x 2 tokens: those of frame 1 joined frame 0, of frame 2 only the last is left."""
    layout = Layout(2, 2, frames=3, medium="video")
    assign = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, -1, -1, -1, 4])
    source = torch.tensor([0, 1, 2, 3, 11])
    columns = torch.arange(5, 17)
    stage = StageTrace("projector", None, "made", assign, columns[source], source, None, ())
    frames = [Image.new("RGB", (28, 28), (60 * t, 0, 0)) for t in range(3)]
    write_page(tmp_path / "video.html", ImageTrace(0, layout, columns, (stage,)), frames, side=120)
    return tmp_path / "video.html"


def test_a_video_tells_the_frame_of_every_token_and_survivor(video):
    data = only(video)
    assert data["frames"]["of"] == [0] * 4 + [1] * 4 + [2] * 4
    assert data["frames"]["count"] == 3
    assert [step["seated"] for step in data["steps"]] == [data["frames"]["of"], [0, 0, 0, 0, 2]]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path; on Debian: apt-get install chromium")
def test_a_video_plays_over_its_timeline(video):
    api = pytest.importorskip("playwright.sync_api", reason="pip install 'tokenreduce[dev]' brings playwright")
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        view, problems = browser.new_page(), []
        view.on("pageerror", lambda error: problems.append(str(error)))
        view.goto(video.as_uri())
        bars = view.locator("#timeline button")
        told = []
        for number in range(bars.count()):
            bars.nth(number).click()
            told.append(view.locator("#said").inner_text())
        assert told == [
            "frame 0: 4 of 4 tokens left",
            "frame 1: 0 of 4 tokens left, 4 joined frame 0",
            "frame 2: 1 of 4 tokens left, 3 dropped",
        ]
        view.locator("#play").click()
        view.wait_for_function("document.getElementById('said').textContent.startsWith('frame 1')")
        view.locator("#step").fill("0")
        assert view.locator("#said").inner_text().endswith("4 of 4 tokens left")
        browser.close()
    assert problems == []
