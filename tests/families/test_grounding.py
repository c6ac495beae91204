"""Contract 3, positions: a survivor keeps its rotary angles in every layer, on every axis, or is counted anew."""

from __future__ import annotations

import pytest
import reduced
import torch
from probe_methods import Backwards

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor.shortened import decoder_of


@torch.no_grad()
def angles(model, inputs: dict) -> list[torch.Tensor]:
    """Per decoder layer, (B, W, 2 d) or, with three axes, (B, W, 6 d): cosines and sines its tokens are turned by."""
    seen: list[torch.Tensor] = []
    batch = len(inputs["input_ids"])

    def look(layer, args, kwargs):
        table = torch.cat([x.float() for x in kwargs["position_embeddings"]], dim=-1)
        table = torch.cat(list(table), dim=-1) if table.ndim == 4 else table  # (3, B, W, d) before 5.17
        seen.append(table.expand(batch, -1, -1))

    handles = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in decoder_of(model).layers]
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def living(case: zoo.Case, trace: tr.Trace, layer: int) -> list[list[int]]:
    """Per sample the columns that ``layer`` works on."""
    kept = trace.kept_at.get(layer, trace.kept)
    text = case.inputs["attention_mask"].bool() & ~trace.visual
    return [sorted(row.nonzero()[:, 0].tolist() + own.tolist()) for row, own in zip(text, kept)]


CASES = [(key, "mixed") for key in reduced.FAMILIES] + [(key, "video") for key in reduced.VIDEO]


@pytest.mark.parametrize(("key", "kind"), CASES)
def test_a_survivor_keeps_its_place(key, kind):
    model = reduced.model(key)
    case = zoo.case(key, kind, model)
    before = angles(model, case.inputs)
    with tr.wrapped(model, tr.HiPrune(keep=0.5), tr.FastV(keep=0.5, layer=1), tr.FastV(keep=0.5, layer=3)):
        after = angles(model, case.inputs)
        trace = tr.trace(model)
    counted_anew = 0.0
    for layer, (whole, short) in enumerate(zip(before, after, strict=True)):
        for b, columns in enumerate(living(case, trace, (0, 1, 1, 3, 3)[layer])):
            own = short[b, short.shape[1] - len(columns) :]
            torch.testing.assert_close(own, whole[b, columns], atol=1e-6, rtol=0)
            counted_anew = max(
                counted_anew, float((own - whole[b, columns[0] : columns[0] + len(columns)]).abs().max())
            )
    assert counted_anew > 0.1


@pytest.mark.parametrize(("key", "kind"), CASES)
def test_or_is_counted_anew_on_every_axis(key, kind):
    model = reduced.model(key)
    case = zoo.case(key, kind, model)
    with torch.no_grad():
        _, width = case.inputs["input_ids"].shape
        plain = zoo.inputs(key, "text", model)
        text = {name: x[:1, -1:].expand(1, width) for name, x in plain.items() if x.ndim == 2 and len(x) == 2}
        text["attention_mask"] = torch.ones_like(text["input_ids"])
        counted = angles(model, text)
    policy = {"positions": "renumber"}
    with tr.wrapped(model, tr.HiPrune(keep=0.5, **policy), tr.FastV(keep=0.5, layer=2, **policy)):
        after = angles(model, case.inputs)
        trace = tr.trace(model)
    for layer, (straight, short) in enumerate(zip(counted, after, strict=True)):
        for b, columns in enumerate(living(case, trace, 2 if layer >= 2 else 0)):
            own, n = short[b, short.shape[1] - len(columns) :], len(columns)
            # a row may start anywhere: the model itself starts rows at their column, or at 1
            starts = [s for s in range(width - n + 1) if torch.allclose(own, straight[0, s : s + n], atol=1e-5)]
            assert starts, (layer, b)


@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_a_token_that_moves_takes_its_place_along(key):
    model = reduced.model(key)
    case = zoo.case(key, "single", model)
    before = angles(model, case.inputs)
    with tr.wrapped(model, Backwards()):
        after = angles(model, case.inputs)
        image = tr.trace(model).images[0]
        columns = living(case, tr.trace(model), 0)[0]
    (stage,) = image.stages
    slots = [columns.index(seat) for seat in stage.seats.tolist()]
    for whole, short in zip(before, after, strict=True):
        torch.testing.assert_close(short[0, slots], whole[0, image.columns[stage.source]], atol=1e-6, rtol=0)
