"""Examples of methods that learn: they train, and what they save is served."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import tokenreduce as tr
from tokenreduce.eval import demo

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "learned"


@pytest.fixture
def slimming(monkeypatch):
    spec = importlib.util.spec_from_file_location("token_slimming", EXAMPLES / "token_slimming.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_token_slimming_learns_and_is_served(slimming, tmp_path):
    found = slimming.trained(steps=60)
    saved = found.weights.save(tmp_path / "slimming.safetensors")

    model, processor = demo.load()
    questions = demo.questions("test", 24, per_image=1)
    text = [demo.prompt(q.question) for q in questions]
    inputs = processor(images=[q.image for q in questions], text=text, return_tensors="pt", padding=True)
    off = {}
    for weights in (None, saved.path):
        with tr.wrapped(model, slimming.TokenSlimming(keep=9, weights=weights)), torch.no_grad():
            own, whole = (model(**inputs, **more).logits[:, -1].log_softmax(-1) for more in ({}, {"tr_keep": None}))
            off[weights] = torch.nn.functional.kl_div(own, whole, reduction="batchmean", log_target=True)
            model(**inputs)
            assert {len(image.kept(0)) for image in tr.trace(model).images} == {9}
    assert off[saved.path] < 0.75 * off[None]
    wide = slimming.TokenSlimming(keep=20, weights=saved.path)
    with tr.wrapped(model, wide), pytest.raises(ValueError, match="20 rows of 16 slots"):
        model(**inputs)
