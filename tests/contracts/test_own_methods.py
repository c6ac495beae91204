"""Contract 7 for a method of one's own: what is wrong in it is said at once, with what is allowed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from models import llava, prompt
from probe_methods import Nothing, Remembers

import tokenreduce as tr
from tokenreduce.layout import Layout
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.pipeline import Pipeline
from tokenreduce.reduction import Reduction
from tokenreduce.registry import registry
from tokenreduce.signals import AttentionReceived, ClsAttention, Keys, LastQueryAttention
from tokenreduce.tokens import VisualTokens
from tokenreduce.views import reduce_views


@dataclass(frozen=True, kw_only=True)
class Mine(Method, register=False):
    name = "mine"
    title = "mine"
    stages = ("encoder", "projector", "llm", "cache")
    step: object = None
    answer: object = None

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (self.step or Step("projector"),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        return self.answer(tokens)


FACTS = ModelFacts(family="none", stages=("encoder",), tower_depth=3, feature_block=2, has_cls=True)


@pytest.fixture(scope="module")
def model():
    return llava()


@pytest.mark.parametrize(
    ("step", "error", "words"),
    [
        (Step("llm", layer=99), ValueError, ["layer=99", "'llm'", "0 to 4"]),
        (Step("llm"), ValueError, ["layer=None", "0 to 4"]),
        (Step("llm", layer=-1), ValueError, ["layer=-1", "0 to 4"]),
        (Step("llm", layer=True), ValueError, ["layer=True"]),
        (Step("encoder", layer=3), ValueError, ["layer=3", "0 to 2"]),
        (Step("projector", layer=1), ValueError, ["layer=None"]),
        (Step("decoder", layer=1), ValueError, ["'decoder'", "offers: pixels, encoder, projector, llm, cache"]),
        (Step("projector", needs=(Keys(9),)), ValueError, ["Keys(block=9", "0 to 3"]),
        (Step("encoder", layer=1, needs=(Keys(2),)), ValueError, ["Keys(block=2", "layer 1", "block itself"]),
        (Step("encoder", layer=1, needs=(ClsAttention(0),)), ValueError, ["ClsAttention", "keys of the block itself"]),
        (Step("projector", needs=(LastQueryAttention(1),)), ValueError, ["LastQueryAttention", "Step('llm', layer=2)"]),
        (Step("llm", layer=1, needs=(LastQueryAttention(3),)), ValueError, ["comes before", "Step('llm', layer=4)"]),
        (Step("projector", needs=(ClsAttention(7),)), ValueError, ["block=7", "0 to 3"]),
        (Step("llm", layer=3, needs=(AttentionReceived(9, "llm"),)), ValueError, ["layer=9", "0 to 4"]),
        (Step("projector", needs=("attention",)), TypeError, ["'attention'", "ClsAttention(22)"]),
        (Step("encoder", layer=1, when="behind"), ValueError, ["when='behind'", "'middle', 'after'"]),
        (Step("cache", layer=1, decode_ids="same"), ValueError, ["decode_ids='same'", "'continue', 'cache_length'"]),
        (Step("decode", layer=0), ValueError, ["layer=0", "1 to 4"]),
        (
            Step("decode", layer=2, needs=(LastQueryAttention(2),)),
            ValueError,
            ["comes before", "Step('decode', layer=3)"],
        ),
        (Step("decode", layer=2, needs=(ClsAttention(1),)), ValueError, ["ClsAttention", "Step('decode', layer=3"]),
        ("projector", TypeError, ["str", "Step(...)"]),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_by_wrap(model, step, error, words):
    with pytest.raises(error) as caught:
        tr.wrap(model, Mine(step=step))
    for word in ("'mine'", *words):
        assert word in str(caught.value)
    assert not tr.is_wrapped(model)


def long(*values) -> torch.Tensor:
    return torch.tensor([values])


FULL = long(0, 1, 2, 3)


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (None, TypeError, ["NoneType", "Reduction.top"]),
        (FULL, TypeError, ["Tensor", "Reduction.top"]),
        (Reduction.select(long(0, 0), 4), ValueError, ["token 0 twice", "Reduction.merge"]),
        (Reduction.merge(long(0, 0, 1, -1), long(0, 2), covers=True), ValueError, ["drops a token", "covers=False"]),
        (Reduction(long(0, 4), FULL.clamp_max(1)), ValueError, ["source holds 4", "0 to 3"]),
        (Reduction(long(0, -2), FULL.clamp_max(1)), ValueError, ["source holds -2"]),
        (Reduction(long(0, 1), FULL), ValueError, ["assign holds 3", "0 to 1"]),
        (Reduction(long(0, 1, 2, 3, 3), FULL), ValueError, ["source has shape (1, 5)", "K <= 4"]),
        (Reduction(torch.tensor([0, 1]), FULL), ValueError, ["source has shape (2,)", "(1, K)"]),
        (Reduction(long(0.0, 1.0), FULL.clamp_max(1)), TypeError, ["source is torch.float32", "torch.int64"]),
        (Reduction(long(0, 1), None), TypeError, ["assign is a NoneType"]),
        (Reduction.merge(FULL.clamp_max(1), long(0, 1), torch.ones(1, 3)), ValueError, ["weight has shape (1, 3)"]),
        (
            Reduction.merge(FULL.clamp_max(1), long(0, 1), torch.full((1, 4), torch.nan)),
            ValueError,
            ["weight holds NaN"],
        ),
        (
            Reduction(long(0, 1), FULL.clamp_max(1), features=torch.full((1, 2, 5), torch.nan)),
            ValueError,
            ["features holds NaN"],
        ),
        (Reduction.merge(FULL.clamp_max(1), long(0, 1, 2)), ValueError, ["assign gives row 2 no token"]),
        (
            Reduction.merge(FULL.clamp_max(1), long(0, 1), long(1, 1, 1, 1)),
            TypeError,
            ["weight is torch.int64", "float"],
        ),
        (Reduction.select(long(0, 1), 4, role=torch.ones(1, 4)), TypeError, ["role is torch.float32", "torch.int64"]),
        (Reduction(long(0, 1), FULL.clamp_max(1), positions="new"), ValueError, ["positions='new'"]),
    ],
)
def test_a_plan_that_does_not_fit_the_tokens_is_refused(answer, error, words):
    tokens = VisualTokens(torch.randn(1, 4, 5), Layout(2, 2))
    with pytest.raises(error) as caught:
        Mine(answer=lambda _: answer).checked(tokens)
    for word in words:
        assert word in str(caught.value)


def test_plans_from_elsewhere_are_looked_through_at_every_call():
    tokens = VisualTokens(torch.randn(1, 4, 2), Layout(2, 2))
    twice = torch.tensor([[1, 1]])
    answers = iter([Reduction.identity(tokens), Reduction.select(twice, 4)])
    mine = Mine(answer=lambda _: next(answers))
    mine.checked(tokens)
    with pytest.raises(ValueError, match="holds token 1 twice"):
        mine.checked(tokens)


def test_the_check_is_in_the_way_of_every_stage(model):
    twice = Mine(answer=lambda tokens: Reduction.select(torch.zeros(len(tokens.features), 2).long(), tokens.num_tokens))
    for step in (Step("projector"), Step("llm", layer=2), Step("encoder", layer=1)):
        with tr.wrapped(model, Mine(step=step, answer=twice.answer)), pytest.raises(ValueError, match="twice"):
            model(**prompt(model, [1]))


@torch.no_grad()
def test_what_a_method_notes_it_finds_again_of_the_tokens_that_are_left(model):
    """Between the note and its use another method drops tokens, of images whose counts then differ."""
    with tr.wrapped(model, Remembers(keep=0.3), Nothing(every=False, layer=2), tr.FastV(keep=9, layer=2)):
        model(**prompt(model, [2, 1]))
        images = tr.trace(model).images
    left = [len(image.kept(2)) for image in images]
    assert set(left) == {0, 9}
    for image in images:
        number = [i * 7 % image.tokens_in for i in image.kept(2).tolist()]
        ranked = sorted(zip(number, image.kept(2).tolist()), reverse=True)[: round(0.3 * image.tokens_in)]
        assert image.kept(3).tolist() == sorted(place for _, place in ranked)


def test_notes_must_be_of_the_images(model):
    tokens = VisualTokens(torch.randn(2, 4, 5), Layout(2, 2))
    for note in (torch.zeros(1, 4), torch.tensor(3.0), 7):
        with pytest.raises(ValueError, match=r"notes\['mine'\] is .*allowed: a tensor of shape \(2, ...\)"):
            Mine(answer=lambda _, note=note: Reduction.identity(tokens, notes={"mine": note})).checked(tokens)


def test_notes_of_one_of_several_views_are_refused():
    tokens = VisualTokens(torch.randn(1, 8, 5), Layout(2, 2, frames=2))
    views = tokens.layout.split("frame")
    of = torch.arange(8).div(4, rounding_mode="floor")[None]
    told = Mine(answer=lambda t: Reduction.identity(t, notes={"mine": torch.zeros(2)}), keep=0.5)
    with pytest.raises(ValueError, match=r"\['mine'\] of one of several views; allowed: .*sees = 'image'"):
        reduce_views(told, tokens, views, of, [4, 4])


def test_a_name_is_given_once():
    with pytest.raises(
        ValueError, match=r"name='fastv' of .*Other is taken by tokenreduce.methods.fastv.FastV; allowed"
    ):

        class Other(Method):
            name = "fastv"

    assert registry()["fastv"] is tr.FastV


def test_a_class_that_is_no_dataclass_is_told(model):
    class Forgotten(Mine, register=False):
        strength: float = 0.3

    with pytest.raises(TypeError, match=r"Forgotten declares strength.*@dataclass"):
        tr.wrap(model, Forgotten, keep=0.5)
    with pytest.raises(TypeError, match=r"Forgotten declares strength.*@dataclass"):
        tr.wrap(model, Forgotten(keep=0.5))


def test_a_class_without_a_name_is_told(model):
    @dataclass(frozen=True, kw_only=True)
    class Nameless(Method):
        pass

    with pytest.raises(TypeError, match="Nameless has no name and no title and no stages"):
        tr.wrap(model, Nameless(keep=0.5))


def test_keeping_infinitely_many_is_taught(model):
    with pytest.raises(ValueError, match=r"keep=inf is outside \(0, 1\].*keep=1.0"):
        tr.wrap(model, "fastv", keep=float("inf"))


def test_a_plan_that_is_no_row_of_steps_is_told(model):
    class OneStep(Mine, register=False):
        def plan(self, facts):
            return Step("projector")

    with pytest.raises(TypeError, match=r"'mine': plan gave a Step; allowed: a tuple of steps"):
        tr.wrap(model, OneStep(answer=Reduction.identity))


@pytest.mark.parametrize("step", [Step("projector"), Step("llm", layer=2)])
def test_more_than_the_budget_is_refused(model, step):
    inputs = prompt(model, [1])
    everything = Mine(step=step, keep=0.25, answer=Reduction.identity)
    words = r"method='mine' left 16 of 16 tokens; allowed: at most 4, which is keep=0.25.*most\(n\)"
    with tr.wrapped(model, everything), pytest.raises(ValueError, match=words):
        model(**inputs)

    class Wide(Mine, register=False):
        def most(self, n):
            return n

    with tr.wrapped(model, Wide(step=step, keep=0.25, answer=Reduction.identity)):
        model(**inputs)


def test_a_plan_made_again_for_the_patches_that_arrive_is_checked_too():
    class Later(Mine, register=False):
        def plan(self, facts):
            layer = 1 if facts.tower_grid is None else 99
            return (Step("encoder", layer=layer, amount=None if facts.tower_grid is None else 1),)

    pipeline = Pipeline([Later(answer=Reduction.identity)], FACTS)
    with pytest.raises(ValueError, match=r"layer=99 at stage 'encoder'; allowed: an int from 0 to 2"):
        pipeline.encoder_steps((4, 4))
