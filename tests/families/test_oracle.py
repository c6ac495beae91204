"""Contracts 2, 3 and 5 on every family: a wrapped model is the bare model on a physically shorter sequence."""

from __future__ import annotations

import pytest
import reduced
import torch
from probe_methods import Backwards, MergeAt, Ragged, Summary

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo

LAST = "merge, ragged llm 1, llm 3"
METHODS = {
    "select": lambda p: (tr.HiPrune(keep=0.4, positions=p),),
    "merge": lambda p: (MergeAt(positions=p),),
    "summary": lambda p: (Summary(keep=0.3, positions=p),),
    "backwards": lambda p: (Backwards(positions=p),),
    "ragged": lambda p: (Ragged(positions=p),),
    "llm 1": lambda p: (tr.FastV(keep=0.4, layer=1, positions=p),),
    "llm 3": lambda p: (tr.FastV(keep=3, layer=3, query="all", positions=p),),
    "ragged llm 1": lambda p: (Ragged(layer=1, positions=p),),
    "both": lambda p: (tr.HiPrune(keep=0.6, positions=p), tr.FastV(keep=0.5, layer=3, positions=p)),
    LAST: lambda p: (
        MergeAt(positions=p),
        Ragged(layer=1, positions=p),
        tr.FastV(keep=2, layer=3, positions=p),
    ),
}
EVERY = [(key, kind) for key in reduced.FAMILIES for kind in zoo.kinds(key)]


def agrees(model, inputs, methods, positions="keep", padding=True):
    out, trace = reduced.forward(model, inputs, *methods)
    reduced.same_logits(model, inputs, out.logits, trace, positions)
    if padding:  # the bare model itself cannot write behind right padding
        reduced.same_tokens(model, inputs, *reduced.write(model, inputs, *methods), positions)


@pytest.mark.parametrize(("key", "kind"), EVERY)
def test_every_kind_of_prompt(key, kind):
    model = reduced.model(key)
    inputs = zoo.inputs(key, kind, model)
    agrees(model, inputs, METHODS["both"]("keep"), padding=kind != "right")


@pytest.mark.parametrize(
    ("methods", "positions"),
    [(m, "keep") for m in METHODS] + [(m, "renumber") for m in ("summary", "backwards", "ragged llm 1", LAST)],
)
@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_every_kind_of_reduction(key, methods, positions):
    model = reduced.model(key)
    inputs = zoo.inputs(key, "mixed", model)
    agrees(model, inputs, METHODS[methods](positions), positions)


@pytest.mark.parametrize("positions", ["keep", "renumber"])
@pytest.mark.parametrize("methods", ["ragged llm 1", "summary"])
@pytest.mark.parametrize("key", [key for key in reduced.VIDEO if "videos" in zoo.kinds(key)])
def test_videos(key, methods, positions):
    model = reduced.model(key)
    inputs = zoo.inputs(key, "videos", model)
    agrees(model, inputs, METHODS[methods](positions), positions)


@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_eager_attention(key):
    model = reduced.model(key, "eager")
    for kind in ("mixed", "right"):
        agrees(model, zoo.inputs(key, kind, model), METHODS["both"]("keep"), padding=kind != "right")


@pytest.mark.parametrize("methods", ["summary", "both"])
@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_without_a_cache(key, methods):
    model = reduced.model(key)
    inputs = zoo.inputs(key, "mixed", model)
    reduced.needs_a_cache(model, inputs)
    reduced.same_tokens(model, inputs, *reduced.write(model, inputs, *METHODS[methods]("keep"), use_cache=False))


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_merging_inside_the_decoder_with_and_without_a_cache(key, layer):
    model = reduced.model(key)
    inputs = zoo.inputs(key, "mixed", model)
    reduced.needs_a_cache(model, inputs)
    (cached, _), (again, _) = (
        reduced.write(model, inputs, MergeAt(layer=layer), use_cache=use) for use in (True, False)
    )
    assert cached == again


@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_a_batch_equals_its_samples(key):
    """Pictures of different number and size, and a sample without any."""
    model = reduced.model(key)
    kinds = ("mixed", "right", "videos") if "videos" in zoo.kinds(key) else ("mixed", "right")
    for kind in kinds:
        case = zoo.case(key, kind, model)
        methods = METHODS["both"]("keep")
        together, trace = reduced.forward(model, case.inputs, *methods)
        written = None if kind == "right" else reduced.write(model, case.inputs, *methods)[0]
        for b, real in enumerate(case.inputs["attention_mask"].bool()):
            alone = zoo.alone(key, case, b)
            single, own = reduced.forward(model, alone, *methods)
            torch.testing.assert_close(together.logits[b][real], single.logits[0], atol=reduced.TOLERANCE, rtol=0)
            for layer in trace.kept_at:
                assert torch.equal(own.kept_at[layer][0] + real.nonzero()[0], trace.kept_at[layer][b])
            if written is not None:
                assert reduced.write(model, alone, *methods)[0] == [written[b]]


@pytest.mark.parametrize("keep", [1, 5, 0.25])
@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_counts_order_and_cache_are_as_reported(key, keep):
    model = reduced.model(key)
    kind = "videos" if "videos" in zoo.kinds(key) else "mixed"
    case = zoo.case(key, kind, model)
    with tr.wrapped(model, tr.HiPrune(keep=0.5), tr.FastV(keep=keep, layer=2)), torch.no_grad():
        cache = model(**case.inputs, use_cache=True).past_key_values
        report, trace = tr.report(model), tr.trace(model)
    first = [[max(1, round(0.5 * n)) for n in row] for row in report.tokens_in]
    last = [[min(n, keep) if isinstance(keep, int) else max(1, round(keep * n)) for n in row] for row in first]
    assert report.tokens_kept == last
    assert [len(image.columns) for image in trace.images] == [n for row in report.tokens_in for n in row]
    others = (trace.visual.sum(1) - torch.tensor([sum(row) for row in report.tokens_in])).tolist()  # row newlines
    text = (case.inputs["attention_mask"].bool() & ~trace.visual).sum(1).tolist()
    holding = {i: held for i, held in enumerate(cache.layers) if hasattr(held, "keys")}  # others are recurrent
    assert holding
    for layer, held in holding.items():
        counts = [n + sum(kept) for n, kept in zip(others, first if layer < 2 else last)]
        assert report.tokens_at_layer[layer] == counts
        assert held.keys.shape[-2] == held.values.shape[-2] == max(a + b for a, b in zip(text, counts))
    for image in trace.images:
        kept = image.kept(2).tolist()
        assert kept == sorted(kept)
        assert set(image.columns.tolist()) <= set(torch.cat([v.columns for v in case.visuals[image.sample]]).tolist())
    assert report.kv_bytes == sum(x.numel() * 4 for held in holding.values() for x in (held.keys, held.values))
