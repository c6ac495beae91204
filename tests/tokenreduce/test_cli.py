"""The command line: help that teaches, errors that say what to do, and commands that work on a local folder."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import tokenreduce as tr
from tokenreduce.cli import app
from tokenreduce.eval import demo
from tokenreduce.eval.demo import model as demo_model
from tokenreduce.eval.demo.measure import Bench, wilson
from tokenreduce.eval.demo.run import run

TRAINED = (demo.WEIGHTS / "config.json").is_file()


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def words(result):
    return " ".join(result.output.split())


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained model of the demo's kind with its processor."""
    place = tmp_path_factory.mktemp("model")
    demo_model.save(demo_model.build_model(0), place)
    return place


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.effect_noise((120, 90), 90).convert("RGB").save(path)
    return path


@pytest.mark.parametrize(
    "command", [(), ("demo",), ("run",), ("sweep",), ("report",), ("tune",), ("methods",), ("models",)]
)
def test_help_shows_examples(command):
    result = call(*command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert "tokenreduce " in result.output


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from tokenreduce.cli import app;"
        "CliRunner().invoke(app, ['run', '--help']); print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_version():
    assert tr.__version__ in call("--version").output


def test_methods_and_models_list_everything():
    listed = call("methods")
    assert listed.exit_code == 0
    assert all(row["name"] in listed.output for row in tr.methods())
    listed = call("models")
    assert listed.exit_code == 0
    assert all(row["model_type"] in listed.output for row in tr.families())


BAD = {
    "unknown method": (["--method", "hiprun"], "Did you mean 'hiprune'"),
    "budget out of range": (["--method", "hiprune", "--keep", "1.5"], "outside (0, 1]"),
    "no budget": (["--method", "hiprune", "--keep", "much"], "not a budget"),
    "zero below": (["--method", "hiprune", "--keep", "1/0"], "not a budget"),
    "ambiguous budget": (["--method", "hiprune", "--method", "fastv", "--keep", "0.5"], "behind its method"),
    "two budgets": (["--method", "hiprune:0.5", "--keep", "0.5"], "behind its method"),
    "parameter without value": (["--method", "fastv", "-p", "layer"], "key=value"),
    "parameter of nobody": (["--method", "fastv", "-p", "hiprune.alpha=1"], "key=value"),
    "unknown parameter": (["--method", "fastv", "-p", "leyer=2"], "Did you mean 'layer'"),
    "layer out of range": (["--method", "fastv", "-p", "layer=9"], "allowed: 1 to 3"),
    "no such device": (["--method", "fastv", "--device", "cuda:77"], "allowed: auto"),
    "no such folder": (["--method", "fastv", "--draw", "nowhere/at/all.png"], "make it first"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_teaching_line(case, folder, photo):
    arguments, message = BAD[case]
    result = call("run", "--model", folder, "--image", photo, "--prompt", "what?", *arguments)
    assert result.exit_code == 2
    assert message in words(result)
    assert "Traceback" not in result.output
    assert result.stderr.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere/here/model", "--prompt", "x"], "allowed: a folder with config.json"),
        (["--model", "demo"], "--method"),
        (["--model", "x", "--method", "fastv"], "is missing"),
    ],
)
def test_missing_model_method_or_prompt(arguments, message, photo):
    more = ["--image", photo, "--method", "fastv"] if "--prompt" in arguments else []
    result = call("run", *arguments, *more)
    assert result.exit_code == 2
    assert message in words(result)


def test_not_a_picture(folder, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    result = call("run", "--model", folder, "--method", "fastv", "--image", text, "--prompt", "x")
    assert result.exit_code == 2
    assert "PNG or JPEG" in words(result)
    result = call("run", "--model", folder, "--method", "fastv", "--image", tmp_path / "gone.png", "--prompt", "x")
    assert result.exit_code == 2


def test_debug_raises_and_a_failed_run_is_one(folder, photo, monkeypatch):
    arguments = ["run", "--model", folder, "--image", photo, "--prompt", "x", "--method"]
    assert isinstance(call(*arguments, "hiprun", "--debug").exception, ValueError)

    def fail(*_, **__):
        raise json.JSONDecodeError("boom", "", 0)

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: torch.zeros(2) @ torch.zeros(3))
    result = call(*arguments, "hiprune")
    assert result.exit_code == 1
    assert "--debug" in words(result)


def test_run_answers_draws_and_reports(folder, photo, tmp_path):
    picture, numbers = tmp_path / "kept.png", tmp_path / "numbers.json"
    result = call("run", "--model", folder, "--method", "hiprune", "--keep", "1/4", "--image", photo, "--prompt",
                  "what color is the star?", "--max-new-tokens", 3, "--draw", picture, "--json", numbers)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "unreduced answer" in result.output
    assert "times as fast" in words(result)
    assert Image.open(picture).width == 640
    found = json.loads(numbers.read_text())
    assert found["report"]["tokens_kept"] == [[36]]
    assert found["first_token_speedup"]["low"] <= found["first_token_speedup"]["median"]
    for measure in (
        "time to first token",
        "vision tower",
        "prefill alone",
        "decode per token",
        "largest tensor of the prefill",
    ):
        assert measure in words(result)
        assert found["measured"][measure]["unreduced"] > 0 < found["measured"][measure]["reduced"]


def test_run_composes_and_sets_parameters(folder, photo, tmp_path):
    numbers = tmp_path / "numbers.json"
    result = call("run", "--model", folder, "--method", "fastervlm:0.5", "--method", "fastv:16", "-p", "fastv.layer=3",
                  "--positions", "renumber", "--image", photo, "--prompt", "x", "--max-new-tokens", 2, "--no-compare",
                  "--json", numbers)  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(numbers.read_text())
    assert found["report"]["tokens_kept"] == [[16]]
    assert "layer=3" in found["methods"][1]
    assert all("renumber" in method for method in found["methods"])
    assert "unreduced_answer" not in found


def test_run_without_chat_template(photo, tmp_path):
    demo_model.save(demo_model.build_model(0), tmp_path)
    processor = demo_model.build_processor()
    processor.chat_template = None
    (tmp_path / "chat_template.jinja").unlink()
    processor.save_pretrained(tmp_path)
    result = call("run", "--model", tmp_path, "--method", "uniform", "--image", photo, "--prompt", "x",
                  "--max-new-tokens", 1, "--no-compare")  # fmt: skip
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "0"], "int >= 1"),
        (["--methods", "foo"], "allowed: "),
        (["--all", "--methods", "pool"], "--methods"),
        (["--images", "0"], "images"),
    ],
)
def test_demo_bad_input(arguments, message, tmp_path):
    result = call("demo", "--out", tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in words(result)


@pytest.mark.skipif(TRAINED, reason="the weights are installed")
def test_demo_says_what_is_missing(tmp_path):
    result = call("demo", "--out", tmp_path)
    assert result.exit_code == 2
    assert "weights" in words(result)


@pytest.fixture(scope="module")
def shown(folder, tmp_path_factory):
    """One small main job on the untrained model, and what it printed."""
    from rich.console import Console
    from transformers import AutoModelForImageTextToText, AutoProcessor

    out = tmp_path_factory.mktemp("out")
    (out / "mine.txt").write_text("mine")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    loaded = (model, AutoProcessor.from_pretrained(folder))
    console = Console(record=True, width=80, file=io.StringIO())
    options = {"methods": ["hiprune", "pool"], "keeps": (1.0, 0.25), "images": 1, "repeats": 1, "loaded": loaded}
    return out, run(out, console=console, **options), console.export_text(), options


def test_main_job_measures_and_writes(shown):
    out, results, printed, _ = shown
    assert json.loads((out / "results.json").read_text())["rows"][0]["method"] == "unreduced"
    assert all((out / name).is_file() for name in results["files"])
    assert (out / "mine.txt").read_text() == "mine"
    assert {p.name for p in out.iterdir()} == {*results["files"], "mine.txt"}
    rows = results["rows"]
    assert [(r["method"], r["tokens"]) for r in rows if r["split"] == "test"] == [
        ("unreduced", 144), ("hiprune", 144), ("hiprune", 36), ("pool", 144), ("pool", 36),
    ]  # fmt: skip
    assert [r["tokens"] for r in rows if r["split"] == "hard"] == [144, 8, 8]
    assert all(r["same_replies"] == 1 for r in rows if r["tokens"] == 144)
    assert all(r["interval"][0] <= r["accuracy"] <= r["interval"][1] for r in rows)
    assert results["environment"]["attention"] == "sdpa"
    assert "unreduced" in printed
    assert "…" not in printed


def test_main_job_replaces_its_own_files_only(shown):
    out, _, _, options = shown
    run(out, **options)
    (out / "demo_uniform_0.5.png").write_text("somebody else's")
    with pytest.raises(ValueError, match=r"demo_uniform_0\.5\.png"):
        run(out, **{**options, "keeps": (0.5,), "methods": ["uniform"]})
    assert (out / "demo_uniform_0.5.png").read_text() == "somebody else's"


def test_batches_equal_the_processor(shown):
    """Encoding pictures once and questions by length gives the model what the processor would."""
    _, _, _, options = shown
    model, processor = options["loaded"]
    asked = demo.questions("test", 2, per_image=3)
    bench = Bench(model, processor, asked)
    for batch in bench.batches:
        chosen = [asked[i] for i in batch["rows"]]
        direct = processor(images=[q.image for q in chosen], text=[demo.prompt(q.question) for q in chosen],
                           return_tensors="pt", padding=True)  # fmt: skip
        mine = bench.inputs(batch)
        assert all(torch.equal(mine[name], direct[name]) for name in mine)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (90, 100, 0.8256, 0.9448)]
)
def test_wilson(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.skipif(not TRAINED, reason="the demo model's weights are not there yet")
def test_demo_command(tmp_path):
    result = call("demo", "--out", tmp_path / "out", "--methods", "hiprune", "--keep", "0.25", "--images", 1)
    assert result.exit_code == 0, result.output
    assert "hiprune" in result.output


@pytest.mark.skipif(not TRAINED, reason="the demo model's weights are not there yet")
def test_run_on_the_embedded_model():
    result = call("run", "--model", "demo", "--method", "hiprune", "--keep", "0.25", "--no-compare")
    assert result.exit_code == 0, result.output
