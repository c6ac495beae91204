"""Assisted decoding is lossless: whatever an assistant proposes, the answer is the one without it."""

from __future__ import annotations

import copy

import pytest
import reduced
import torch

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo

FAMILIES = ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "paligemma"]
METHODS = {
    "fastv": lambda: tr.FastV(layer=2, keep=0.4),
    "hiprune": lambda: tr.HiPrune(keep=0.4),
    "mustdrop": lambda: tr.MustDrop(keep=0.75, merge=False),
}


def answer(model, inputs, **more):
    return model.generate(**inputs, max_new_tokens=8, do_sample=False, **more)


def assistants(model):
    """The unreduced model, which is often right, one that is right now and then, and a reduced one."""
    right = copy.deepcopy(model)
    wrong = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in wrong.get_output_embeddings().parameters():
            p.add_(torch.randn_like(p) * p.std() / 2)
    short = tr.wrap(copy.deepcopy(model), tr.Uniform(keep=0.3))
    return {"right": right, "wrong": wrong, "short": short}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("key", FAMILIES)
def test_an_assistant_changes_nothing(key, method):
    model = reduced.model(key)
    inputs = zoo.inputs(key, "single", model)
    helpers = assistants(model)
    with tr.wrapped(model, METHODS[method]()):
        expected, kept = answer(model, inputs), tr.trace(model).kept
        for name, assistant in helpers.items():
            assert torch.equal(answer(model, inputs, assistant_model=assistant), expected), name
            assert all(map(torch.equal, tr.trace(model).kept, kept)), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("key", FAMILIES)
def test_prompt_lookup_changes_nothing(key, method):
    """The question repeats itself, so that something is proposed with the prompt already."""
    model = reduced.model(key)
    repeated = torch.tensor([[30, 31, 32, 30, 31, 32, 30, 31]])
    inputs = zoo.follow(key, zoo.inputs(key, "single", model), repeated)
    if "token_type_ids" in inputs and key.startswith("paligemma"):
        inputs["token_type_ids"][:, -repeated.shape[1] :] = 0  # of the question
    with tr.wrapped(model, METHODS[method]()):
        expected = answer(model, inputs)
        assert torch.equal(answer(model, inputs, prompt_lookup_num_tokens=3), expected)
