"""What a measured answer costs: beams, answers of unequal length, and windows, on a model of the zoo."""

from __future__ import annotations

import pytest
import torch

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.harness.answers import new_tokens
from tokenreduce.eval.harness.meter import Meter


def measured(model, inputs, **options):
    meter, before = Meter(), vars(model).get("generate")
    with meter.watching(model):
        model.generate(**inputs, **{"max_new_tokens": 2, "do_sample": False, **options})
    assert vars(model).get("generate") is before
    return meter.rows


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 3}], ids=str)
@pytest.mark.parametrize("key", ["llava", "gemma3"])
def test_a_full_budget_costs_what_no_reduction_costs(key, options):
    model = zoo.build(key, **({"window": 8} if key == "gemma3" else {}))
    inputs = zoo.inputs(key, "equal", model)
    bare = measured(model, inputs, **options)
    with tr.wrapped(model, "uniform", keep=1.0):
        full = measured(model, inputs, **options)
    for name in ("flops", "flops_unreduced", "kv_bytes", "new_tokens", "tokens_in"):
        assert [row[name] for row in full] == [row[name] for row in bare]


def test_beams_multiply_both_sides():
    model = zoo.build("llava")
    inputs = zoo.inputs("llava", "equal", model)
    with tr.wrapped(model, "uniform", keep=0.25):
        one, three = measured(model, inputs), measured(model, inputs, num_beams=3)
    for name in ("flops", "flops_unreduced", "kv_bytes"):
        assert [row[name] for row in three] == [3 * row[name] for row in one]


def test_new_tokens_are_those_of_each_row():
    model = zoo.build("llava")
    inputs = zoo.inputs("llava", "mixed", model)
    written = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    end = int(written[0, 1])  # the first row ends with its second token
    rows = measured(model, inputs, max_new_tokens=6, eos_token_id=end, pad_token_id=0)
    expected = [row.index(end) + 1 if end in row else 6 for row in written.tolist()]
    assert min(expected) <= 2 < max(expected)
    assert [row["new_tokens"] for row in rows] == expected


def test_answers_end_where_they_end():
    answers = torch.tensor([[7, 2, 0, 0], [7, 8, 9, 7], [7, 8, 0, 0], [2, 0, 0, 0]])
    assert new_tokens(answers, 4, {2}, 0) == [2, 4, 2, 1]
    assert new_tokens(answers, 2, {2}, 0) == [6, 3]
    assert new_tokens(answers[:1], 1, {2}, 2) == [2]
