"""``tokenreduce calibrate``: a file of thresholds from a folder of pictures."""

from __future__ import annotations

import json

import pytest
import torch
from encoder_models import transformers_model
from PIL import Image
from transformers import CLIPImageProcessor
from typer.testing import CliRunner

import tokenreduce as tr
from tokenreduce.cli import app
from tokenreduce.eval import demo
from tokenreduce.eval.demo.scene_questions import questions
from tokenreduce.loading import picture_batch


def call(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["calibrate", *map(str, arguments)])
    return done.exit_code, " ".join(done.output.split())


def test_thresholds_of_the_demo_model(tmp_path):
    """Scenes it has not seen are left with about as many tokens on average, simple ones with fewer."""
    out = tmp_path / "demo.json"
    code, said = call("demo", "--keep", "0.25", "--limit", 64, "--out", out)
    assert code == 0, said
    assert "64 pictures, " in said
    assert "wrote" in said
    content = json.loads(out.read_text())
    assert (content["views"], content["keep"], content["batch"], content["dtype"]) == (64, 0.25, 32, "float32")
    assert content["tower"]["type"] == "clip_vision_model"
    model, processor = demo.load()
    scenes = {id(q.image): q for q in questions("test", 32)}.values()
    with tr.wrapped(model, "dymu", calibration=out), torch.no_grad():
        model(**picture_batch(processor, [q.image for q in scenes], model))
        kept = [own[0] for own in tr.report(model).tokens_kept]
    assert abs(sum(kept) / len(kept) - 36) < 8
    order = sorted(range(len(kept)), key=lambda i: len(list(scenes)[i].scene.things))
    simple, full = order[: len(order) // 3], order[-(len(order) // 3) :]
    assert sum(kept[i] for i in simple) < sum(kept[i] for i in full)
    code, said = call("demo", "--limit", 8, "--out", out)
    assert (code, content) == (2, json.loads(out.read_text()))
    assert "exists; choose another name, or pass --overwrite to replace it" in said


def test_an_encoder_by_itself_and_a_folder(tmp_path):
    model, folder = transformers_model("clip"), tmp_path / "pictures"
    model.save_pretrained(tmp_path / "model")
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size=size, crop_size=size).save_pretrained(tmp_path / "model")
    folder.mkdir()
    for i in range(5):
        Image.effect_noise((40, 40), 20 * i + 1).convert("RGB").save(folder / f"{i}.png")
    out = tmp_path / "found.safetensors"
    code, said = call(tmp_path / "model", "--images", folder, "--keep", 8, "--batch", 4, "--out", out)
    assert code == 0, said
    found = tr.Calibration.of(out)
    assert (found.views, found.batch, found.keep, len(found.thresholds)) == (5, 4, 8, 4)
    with tr.wrapped(model, "dymu", calibration=found):
        model(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["some/model"], "--images is missing; only the demo model brings its own"),
        (["demo", "--out", "thresholds.txt"], "allowed: a name ending in .json or .safetensors"),
        (["demo", "--out", "nowhere/thresholds.json"], "does not exist; make it first"),
        (["demo", "--keep", "many", "--out", "new.json"], "--keep='many' is not a budget"),
        (["demo", "--keep", "auto", "--out", "new.json"], "thresholds are found for a mean number"),
        (["demo", "--images", ".", "--out", "new.json"], "is a folder without pictures"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, answer = call(*arguments)
    assert code == 2
    assert said in answer
    assert list(tmp_path.iterdir()) == []
