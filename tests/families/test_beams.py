"""Beams of samples with several pictures, which some models of transformers mix up: said once, where it happens."""

from __future__ import annotations

import warnings

import pytest
import reduced
import torch

import tokenreduce as tr
from tokenreduce.adapters.hooks.repeated_prompts import show_the_same
from tokenreduce.eval import doctor
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor.faults import faults

pytestmark = pytest.mark.every_family

MIXES = ["glm4v", "glm_ocr"]


def said(model, key: str, kind: str, **ways) -> list[str]:
    """Warnings of two calls of ``generate``."""
    inputs = zoo.inputs(key, kind, model)
    with warnings.catch_warnings(record=True) as caught, tr.wrapped(model, tr.Uniform(keep=0.5)):
        warnings.simplefilter("always")
        for _ in range(2):
            model.generate(**inputs, max_new_tokens=2, **{"do_sample": False, **ways})
    return [str(one.message) for one in caught if "different pictures" in str(one.message)]


@pytest.mark.parametrize("key", MIXES)
def test_mixed_up_beams_are_warned_of_once(key):
    model = reduced.model(key)
    (beams,) = said(model, key, "mixed", num_beams=2)
    assert key in beams
    assert "num_beams=1" in beams
    assert len(said(model, key, "mixed", num_return_sequences=2, do_sample=True)) == 1


@pytest.mark.parametrize(
    ("key", "kind", "beams"), [("glm4v", "mixed", 1), ("glm4v", "equal", 2), ("qwen2_vl", "mixed", 2)]
)
def test_beams_that_show_the_same_are_not(key, kind, beams):
    assert said(reduced.model(key), key, kind, num_beams=beams) == []


def test_the_doctor_names_them():
    found = doctor.doctor("glm4v")
    assert len(found.faults) == 1
    assert found.faults[0].startswith("glm4v: ")
    assert found.faults[0] in str(found)
    assert found.as_dict()["faults"] == found.faults
    assert faults("qwen2_vl") == []


def test_only_columns_of_pictures_are_compared():
    embeds = torch.zeros(4, 3, 2)
    embeds[1, 0] = 1
    visual = torch.tensor([[False, True, True]]).expand(4, -1)
    assert show_the_same(embeds, visual, 2)
    assert not show_the_same(embeds, ~visual, 2)
    embeds[3, 2] = 1
    assert not show_the_same(embeds, visual, 2)
