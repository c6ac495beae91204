"""What holds for every method that selects: counts, ties, batches, errors."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from selections import FACTS, best, counts, scored, shown

from tokenreduce.groups import Image, group_images
from tokenreduce.kernels.grid_partition import grid_partition
from tokenreduce.kernels.top_k import top_k
from tokenreduce.layout import Layout
from tokenreduce.method import Step
from tokenreduce.methods.fastervlm import FasterVLM
from tokenreduce.methods.fastv import FastV
from tokenreduce.methods.hiprune import HiPrune
from tokenreduce.registry import make, registry
from tokenreduce.signals import (
    AttentionReceived,
    ClsAttention,
    LastQueryAttention,
)
from tokenreduce.tokens import VisualTokens

#: methods that fill a budget; merging inside the encoder follows a schedule of amounts instead
IMAGES = [
    name for name, cls in registry().items() if "encoder" not in cls.stages and "image" in cls.media and cls.shortens
]

#: tested by what they need: test_layer_by_layer.py (an average over layers), and files of their own
ELSEWHERE = ("aim", "pyramiddrop", "sparsevlm", "cdpruner", "dart", "dyvte", "learned_selector", "query_compressor")
ELSEWHERE += ("videollm_mod",)

# methods that answer for a single image with exactly the budget
NAMES = [name for name in IMAGES if name not in ELSEWHERE]

every_method = pytest.mark.parametrize("name", NAMES)


def rows_of(tokens: VisualTokens, index: list[int]) -> VisualTokens:
    """The images ``index`` of a batch."""
    return VisualTokens(
        features=tokens.features[index],
        layout=tokens.layout,
        stage=tokens.stage,
        layer=tokens.layer,
        amount=tokens.amount,
        signals={signal: value[index] for signal, value in tokens.signals.items()},
    )


@every_method
def test_the_count_is_exact_for_every_size(name) -> None:
    for n in range(1, 301):
        for keep in (1, n // 3 or 1, n - 1 or 1, n, 0.1, 0.5, 1.0):
            method = make(name, keep=keep)
            wanted = keep if isinstance(keep, int) else max(1, round(keep * n))
            for step in method.plan(FACTS):
                tokens = shown(step, n)
                assert counts(method.reduce(tokens).check(tokens)) == [wanted] * 2, f"{n=} {keep=}"


@every_method
def test_every_count_of_one_size(name) -> None:
    for keep in range(1, 64):
        method = make(name, keep=keep)
        for step in method.plan(FACTS):
            tokens = shown(step, 63)
            assert counts(method.reduce(tokens).check(tokens)) == [keep] * 2


@every_method
def test_a_count_above_the_size_keeps_all(name) -> None:
    method = make(name, keep=1000)
    for step in method.plan(FACTS):
        plan = method.reduce(shown(step, 30))
        assert torch.equal(plan.source, torch.arange(30).expand(2, -1))


@every_method
@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=st.integers(1, 120), part=st.floats(0, 1), batch=st.integers(1, 4), seed=st.integers(0, 999))
def test_rows_are_distinct_ascending_and_assigned(name, n, part, batch, seed) -> None:
    method = make(name, keep=max(1, round(part * n)))
    for step in method.plan(FACTS):
        tokens = shown(step, n, batch, seed)
        plan = method.reduce(tokens).check(tokens)
        for b in range(batch):
            rows = plan.source[b, : counts(plan)[b]]
            source = rows[rows >= 0]
            assert len(rows) - len(source) <= 1  # a summary comes last
            assert torch.equal(rows[: len(source)], source)
            assert (source.diff() > 0).all()
            assert (source < n).all()
            # the token a row sits at is one that the row stands for
            assert torch.equal(plan.assign[b, source], torch.arange(len(source)))
            assert set(plan.assign[b].tolist()) <= {-1, *range(len(rows))}
            if not plan.merges and plan.features is None:
                assert int((plan.assign[b] >= 0).sum()) == len(source)


@every_method
def test_a_batch_equals_its_images(name) -> None:
    method = make(name, keep=11)
    for step in method.plan(FACTS):
        tokens = shown(step, 40, batch=4)
        together = method.reduce(tokens)
        for order in ([0], [3], [2, 0], [3, 2, 1, 0]):
            some = method.reduce(rows_of(tokens, order))
            for field in ("source", "assign", "weight", "features", "role"):
                found, whole = getattr(some, field), getattr(together, field)
                assert (found is None) == (whole is None)
                if found is not None and field == "features":  # products of a batch round otherwise than those of one
                    torch.testing.assert_close(found, whole[order])
                elif found is not None:
                    assert torch.equal(found, whole[order]), field
            if some.features is None:
                assert torch.equal(some.carry(tokens.features[order]), together.carry(tokens.features)[order])


@every_method
def test_what_is_shown_is_left_alone(name) -> None:
    method = make(name, keep=7)
    for step in method.plan(FACTS):
        tokens = shown(step, 24)
        given = [tokens.features, tokens.source, tokens.size, tokens.role, *tokens.signals.values()]
        before = [x.clone() for x in given]
        plan = method.reduce(tokens)
        if plan.features is None:
            plan.carry(tokens.features)
        assert all(map(torch.equal, before, given))


@every_method
def test_the_books_balance_when_a_plan_is_carried_out(name) -> None:
    """Carried out on images: sizes count the original tokens, seats stay ascending, nothing is counted twice."""
    method = make(name, keep=13)
    layout = Layout(6, 8)
    for step in method.plan(FACTS):
        tokens = shown(step, 48, layout=layout)
        (group,) = group_images([Image(b, torch.arange(48) + 5, layout) for b in range(2)], torch.device("cpu"))
        group.features = tokens.features
        for part in group.apply(method.reduce(tokens), step.stage, step.layer, method.name):
            assert part.num_tokens == 13
            assert (part.seats.diff(dim=1) > 0).all()
            assert torch.equal(part.size.sum(dim=1), (part.assign >= 0).sum(dim=1).float())
            for row in range(13):
                assert torch.equal((part.assign == row).sum(dim=1).float(), part.size[:, row])


@every_method
def test_the_position_policy_is_handed_on(name) -> None:
    for policy in ("keep", "renumber"):
        method = make(name, keep=4, positions=policy)
        for step in method.plan(FACTS):
            assert method.reduce(shown(step, 9)).positions == policy


@every_method
def test_gradients_after_a_run_in_inference_mode(name) -> None:
    """Nothing remembered from an inference run may stand in the way of training."""
    method = make(name, keep=5)
    grid_partition.cache_clear()
    for step in method.plan(FACTS):
        with torch.inference_mode():
            method.reduce(shown(step, 35))
        tokens = shown(step, 35)
        tokens.features.requires_grad_()
        plan = method.reduce(tokens)
        rows = plan.carry(tokens.features) if plan.features is None else plan.features
        rows.square().sum().backward()
        assert tokens.features.grad is not None
        assert torch.equal(tokens.features.grad.abs().sum(dim=2) > 0, plan.assign >= 0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(score=st.lists(st.integers(0, 4), min_size=1, max_size=40), part=st.floats(0, 1))
@pytest.mark.parametrize(
    ("cls", "more"),
    [
        (FasterVLM, {}),
        (FasterVLM, {"heads": "max"}),
        (FasterVLM, {"score": "global_mean"}),
        (FastV, {}),
        (FastV, {"query": "all"}),
        (HiPrune, {"alpha": 0.0}),
    ],
)
def test_ties_go_to_the_lowest_index(cls, more, score, part) -> None:
    k = max(1, round(part * len(score)))
    values = torch.tensor([score]) / 8
    scores = [values.flip(1), values] if cls is HiPrune else [values]  # without anchors the object score says nothing
    plan = scored(cls, scores, keep=k, **more)
    assert plan.source[0].tolist() == sorted(best(score, k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_top_k_is_stable_in_every_dtype(dtype) -> None:
    score = torch.tensor([[1, 3, 3, 0, 3, 1], [2, 2, 2, 2, 2, 2]], dtype=dtype)
    assert top_k(score, 4).tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]
    assert top_k(score, 0).shape == (2, 0)


def test_attention_methods_ask_for_the_layer_they_describe() -> None:
    assert FasterVLM().plan(FACTS) == (Step("projector", needs=(ClsAttention(22, "mean"),)),)
    assert FasterVLM(heads="max").plan(FACTS)[0].needs == (ClsAttention(22, "max"),)
    assert FasterVLM(score="global_mean").plan(FACTS)[0].needs == (AttentionReceived(22),)
    assert FastV(layer=3).plan(FACTS) == (Step("llm", layer=3, needs=(LastQueryAttention(2),)),)
    assert FastV(query="all").plan(FACTS)[0].needs == (AttentionReceived(1, "llm"),)
    assert HiPrune().plan(FACTS)[0].needs == (AttentionReceived(8), AttentionReceived(22))
    windows = replace(FACTS, tower_depth=32, feature_block=31, full_blocks=(7, 15, 23, 31))  # Qwen2.5-VL
    assert HiPrune().plan(windows)[0].needs == (AttentionReceived(15), AttentionReceived(31))
    assert HiPrune(object_layer=1).plan(FACTS)[0].needs == (AttentionReceived(0), AttentionReceived(22))


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize(
    ("parameters", "kind", "words"),
    [
        ({"keep": 0}, ValueError, ["keep=0", "an int >= 1", "(0, 1]"]),
        ({"keep": -3}, ValueError, ["keep=-3", "an int >= 1"]),
        ({"keep": 0.0}, ValueError, ["keep=0", "(0, 1]"]),
        ({"keep": 1.5}, ValueError, ["keep=1.5", "(0, 1]"]),
        ({"keep": 64.0}, ValueError, ["keep=64", "(0, 1]", "pass the int keep=64"]),
        ({"keep": float("nan")}, ValueError, ["keep=nan", "(0, 1]"]),
        ({"keep": True}, TypeError, ["keep=True", "bool", "(0, 1]"]),
        ({"keep": "half"}, TypeError, ["keep='half'", "str", "(0, 1]"]),
        ({"keep": None}, TypeError, ["keep=None", "(0, 1]"]),
        ({"positions": "original"}, ValueError, ["positions='original'", "'keep'", "'renumber'"]),
        ({"keeep": 3}, TypeError, ["'keeep'", "keep"]),
    ],
    ids=str,
)
def test_every_method_refuses_bad_parameters(name, parameters, kind, words) -> None:
    if parameters == {"keep": None} and registry()[name].keep is None:  # has a meaning: what was published
        assert make(name, keep=None).is_identity(100) is False
        return
    with pytest.raises(kind) as caught:
        make(name, **parameters)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("name", "parameters", "kind", "words"),
    [
        ("fastervlm", {"heads": "median"}, ValueError, ["heads='median'", "'mean'", "'max'"]),
        ("fastervlm", {"score": "text"}, ValueError, ["score='text'", "'cls'", "'global_mean'"]),
        ("fastervlm", {"heads": "max", "score": "global_mean"}, ValueError, ["heads='max'", "score='cls'"]),
        ("fastv", {"layer": 0}, ValueError, ["layer=0", "an int >= 1"]),
        ("fastv", {"layer": 2.0}, ValueError, ["layer=2.0", "an int >= 1"]),
        ("fastv", {"layer": True}, ValueError, ["layer=True", "an int >= 1"]),
        ("fastv", {"query": "first"}, ValueError, ["query='first'", "'last'", "'all'"]),
        ("hiprune", {"alpha": -0.1}, ValueError, ["alpha=-0.1", "[0, 1]"]),
        ("hiprune", {"alpha": 1.01}, ValueError, ["alpha=1.01", "[0, 1]"]),
        ("hiprune", {"alpha": float("nan")}, ValueError, ["alpha=nan", "[0, 1]"]),
        ("hiprune", {"border": "wrap"}, ValueError, ["border='wrap'", "'clamp'", "'drop'"]),
        ("hiprune", {"parity": "code"}, ValueError, ["parity='code'", "'paper'", "'release'"]),
        ("hiprune", {"object_layer": 0}, ValueError, ["object_layer=0", "an int >= 1"]),
        ("hiprune", {"object_layer": 9.0}, ValueError, ["object_layer=9.0", "an int >= 1"]),
        ("random", {"seed": "x"}, TypeError, ["seed='x'", "any int"]),
        ("random", {"seed": 0.5}, TypeError, ["seed=0.5", "any int"]),
    ],
    ids=str,
)
def test_methods_refuse_their_own_bad_parameters(name, parameters, kind, words) -> None:
    with pytest.raises(kind) as caught:
        make(name, **parameters)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_layers_a_model_does_not_have_are_refused_when_planning() -> None:
    with pytest.raises(ValueError, match=r"layer=32 leaves no decoder layer.*allowed: 1 to 31"):
        FastV(layer=32).plan(FACTS)
    with pytest.raises(ValueError, match=r"object_layer=24 is outside \[1, 23\]"):
        HiPrune(object_layer=24).plan(FACTS)
    without = dataclasses.replace(FACTS, has_cls=False, tower_prefix=0)
    for asked in ({"score": "cls"}, {"heads": "max"}):
        with pytest.raises(ValueError, match=r"no \[CLS\] token; allowed here: score='global_mean'"):
            FasterVLM(**asked).plan(without)
    assert FasterVLM().plan(without) == FasterVLM(score="global_mean").plan(without)
    assert FasterVLM().substitutes(without)
    assert not FasterVLM(score="global_mean").substitutes(without)
    assert not FasterVLM().substitutes(FACTS)


def test_parameters_of_other_methods_are_refused_with_a_hint() -> None:
    with pytest.raises(
        TypeError, match=r"fastv has no parameter 'alpha'; it has: keep, positions, strict, layer, query"
    ):
        make("fastv", alpha=0.1)
    with pytest.raises(TypeError, match=r"hiprune has no parameter 'alfa'.*Did you mean 'alpha'\?"):
        make("hiprune", alfa=0.1)
    with pytest.raises(ValueError, match=r"method='hiprun' is unknown.*Did you mean 'hiprune'\?"):
        make("hiprun")
