"""Rows that enter the projector, one for each token, and what the projector makes of them, on every family."""

from __future__ import annotations

import pytest
import reduced
import torch
from test_zoo import VARIANTS

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.signals import ClsAttention, ProjectorInput, TowerPrefix

ROWS = ProjectorInput()
CASES = [(key, kind) for key in reduced.FAMILIES for kind in ("mixed", "videos", "video") if kind in zoo.kinds(key)]
WITH_CLS = [key for key in reduced.FAMILIES if family_of(reduced.model(key)).facts().has_cls]


def watcher(change=None, needs=(ROWS,)):
    """At the projector, keeps what ``change`` says, or all; notes what it was shown."""

    class Watcher(Method, register=False):
        name, title, stages, sees = "watcher", "watcher", ("projector",), "frame"

        def plan(self, facts: ModelFacts):
            return (Step("projector", needs=needs),)

        def is_identity(self, n: int) -> bool:
            return False

        def most(self, n: int) -> int:
            return n

        def reduce(self, tokens):
            seen.append(tokens)
            return Reduction.identity(tokens) if change is None else change(tokens)

    seen: list = []
    return Watcher(), seen


@pytest.mark.parametrize(("key", "kind"), CASES)
def test_the_projector_makes_the_features_of_its_rows(key, kind):
    model = reduced.model(key)
    method, seen = watcher()
    reduced.forward(model, zoo.inputs(key, kind, model), method)
    for tokens in seen:
        rows = tokens.signal(ROWS)
        torch.testing.assert_close(tokens.projector(rows), tokens.features, atol=1e-5, rtol=1e-5)
        if not tokens.projector.exact:
            assert rows is tokens.features or torch.equal(rows, tokens.features)
            continue
        once = tokens.projector(rows[:, :1].mean(dim=0))
        assert once.shape == (1, tokens.features.shape[-1])
        linear = tokens.projector.linear
        if linear is not None:
            hidden = linear.act(torch.nn.functional.linear(rows, linear.first, linear.first_bias))
            made = torch.nn.functional.linear(hidden, linear.second, linear.second_bias)
            torch.testing.assert_close(made, tokens.features, atol=1e-5, rtol=1e-5)
    films = key == "llava_onevision" and "video" in kind
    assert {tokens.projector.exact for tokens in seen} == ({False} if films and kind == "video" else {True, not films})


def test_pictures_that_are_scaled_down_behind_the_projector_have_no_rows_in_front_of_it():
    model = reduced.model("llava_onevision", **VARIANTS["llava_onevision"])
    method, seen = watcher()
    reduced.forward(model, zoo.inputs("llava_onevision", "image_and_video", model), method)
    for tokens in seen:
        assert not tokens.projector.exact
        assert torch.equal(tokens.signal(ROWS), tokens.features)
        assert tokens.projector(tokens.features) is tokens.features


@pytest.mark.parametrize("key", WITH_CLS)
def test_what_stands_in_front_of_the_patches_comes_view_by_view(key):
    model = reduced.model(key)
    case, prefix = zoo.case(key, "mixed", model), family_of(model).facts().tower_prefix
    signal = TowerPrefix(1)
    method, seen = watcher(needs=(signal, ClsAttention(1)))
    family = family_of(model)
    rows = []

    def heard(module, args, output):
        rows.append((output[0] if isinstance(output, tuple) else output)[:, :prefix])

    handle = family.block(1).module.register_forward_hook(heard)
    reduced.forward(model, case.inputs, method)
    handle.remove()
    shown = torch.cat([tokens.signal(signal) for tokens in seen])
    assert shown.shape[1:3] == (1, prefix)  # every view by itself
    assert sorted(shown[:, 0, 0, 0].tolist()) == sorted(torch.cat(rows)[:, 0, 0].tolist())


def test_a_tower_without_rows_in_front_of_its_patches_is_not_asked_for_them():
    with pytest.raises(ValueError, match="no rows in front of its patches; choose"):
        tr.wrap(zoo.build("gemma3"), watcher(needs=(TowerPrefix(1),))[0])


@pytest.mark.parametrize("key", ["llava", "qwen3_vl", "gemma3", "internvl"])
def test_a_method_that_projects_pays_for_it(key):
    """What is projected once more is in the bill of the reduced model alone, and is not taken for pictures' rows."""
    model = reduced.model(key)

    def again(tokens):
        rows = tokens.signal(ROWS)
        made = tokens.projector(rows)
        assert len(tokens.signal(ROWS)) == len(rows)
        return Reduction(
            source=torch.arange(tokens.num_tokens).expand(len(rows), -1),
            assign=torch.arange(tokens.num_tokens).expand(len(rows), -1),
            features=made,
        )

    inputs = zoo.inputs(key, "equal", model)
    with tr.wrapped(model, watcher()[0]), torch.no_grad():
        before = model(**inputs).logits
        plain = tr.report(model).by_stage["projector"]
    with tr.wrapped(model, watcher(again)[0]), torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, before, atol=reduced.TOLERANCE, rtol=0)
        projected = tr.report(model).by_stage["projector"]
    assert plain.flops == plain.flops_unreduced == projected.flops_unreduced
    extra = projected.flops - plain.flops
    mergers = 1 + len(getattr(model.base_model.visual, "deepstack_merger_list", ())) if key == "qwen3_vl" else 1
    assert extra * mergers == plain.flops


def test_gradients_reach_the_tower_through_rows_that_are_projected_anew():
    model = zoo.build("llava")

    def halves(tokens):
        rows = tokens.signal(ROWS)
        k = tokens.num_tokens // 2
        made = tokens.projector((rows[:, :k] + rows[:, k : 2 * k]) / 2)
        plan = Reduction.select(torch.arange(k).expand(len(rows), k), tokens.num_tokens)
        return Reduction(source=plan.source, assign=plan.assign, features=made)

    inputs = zoo.inputs("llava", "single", model)
    with tr.wrapped(model, watcher(halves)[0]):
        model(**inputs).logits.square().mean().backward()
    weight = family_of(model).block(0).attention.k_proj.weight
    assert weight.grad.abs().sum() > 0
