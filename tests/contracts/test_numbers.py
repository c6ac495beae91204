"""Numbers that a user does not see: autocast leaves rankings alone, NaN is told of."""

from __future__ import annotations

import warnings

import pytest
import reduced
import torch
from pairs import made

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.layout import Layout
from tokenreduce.signals import LastQueryAttention
from tokenreduce.tokens import VisualTokens


@pytest.mark.parametrize("name", ["fastv", "mustdrop", "hiprune", "fastervlm", "tome", "pitome"])
@torch.no_grad()
def test_wrapped_models_run_under_autocast(name):
    model = reduced.model("llava")
    inputs = zoo.inputs("llava", "mixed", model)
    with tr.wrapped(model, made(name)), torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**inputs)
        assert output.logits.isfinite().all()
        assert all(len(image.stages[-1].source) < image.layout.num_tokens for image in tr.trace(model).images)


def ranked(dtype: torch.dtype, score: torch.Tensor) -> VisualTokens:
    x = torch.randn(1, 8, 4, dtype=dtype)
    return VisualTokens(x, Layout(2, 4), stage="llm", layer=2, signals={LastQueryAttention(1): score})


def test_scores_that_are_not_numbers_are_told_of():
    score = torch.rand(1, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tr.FastV(keep=3).checked(ranked(torch.float16, score))
    score[0, 5] = torch.nan
    with pytest.warns(UserWarning, match="method='fastv' at llm layer 2 ranks by LastQueryAttention.*NaN .*float16"):
        tr.FastV(keep=3).checked(ranked(torch.float16, score))
