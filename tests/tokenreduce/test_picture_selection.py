"""A method as the two functions of a server: what they count is what they keep, and what a wrapped model keeps."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
from models import llava, prompt

import tokenreduce as tr
from tokenreduce.layout import Layout
from tokenreduce.picture_selection import USUAL, Selection
from tokenreduce.registry import registry
from tokenreduce.signals import Keys, ProjectorInput, TowerPrefix, TowerRows

SIZES = [
    (6, 8),
    (1, 5),
    (4, 4, 6),
    Layout(4, 4, views=(Layout(4, 4), Layout(4, 4), Layout(4, 4, cells=tuple(range(12))))),
]
BUDGETS = [0.25, 7, 1.0, 1, 500]
#: some that are refused, by the reason; every other method is served, or refused for one of these
REFUSED = {
    "stage": ("aim", "fastv", "gtp", "holitom", "pixelprune", "promptdistill", "rlt", "sparsevlm", "tome"),
    "text": ("cdpruner",),
    "learns, and its weights": ("learned_selector", "query_compressor", "dyvte", "videollm_mod"),
    "what each picture needs": ("storm",),
}


def selection(name: str) -> Selection:
    more = {"keep": 0.5} if name == "prumerge" else {}
    return tr.selection(name, facts=USUAL, **more)


def served() -> list[str]:
    """Those that are not refused; at the projector, a number that is given says how many are left."""
    found = []
    for name in registry():
        try:
            selection(name)
        except ValueError as error:
            if not any(reason in str(error) for reason in REFUSED):
                raise
        else:
            found.append(name)
    return found


def signals(made: Selection, sizes: Layout) -> dict:
    """Values of what a method needs, drawn at random."""
    n, views = sizes.num_tokens, len(sizes.split("frame"))
    drawn = torch.Generator().manual_seed(n)
    found = {}
    for need in made.needs:
        shape: tuple[int, ...] = (n,)
        if isinstance(need, (Keys, ProjectorInput, TowerRows)):
            shape = (n, 16)
        elif isinstance(need, TowerPrefix):
            shape = (views, 1, 16)
        found[need] = torch.rand(shape, generator=drawn) if need.axis != "picture" else torch.tensor(12345)
    return found


def test_methods_of_one_kind_are_served_and_no_other():
    assert {"divprune", "fastervlm", "hiprune", "visionzip", "evs", "pool"} <= set(served())
    assert not set(served()) & {name for names in REFUSED.values() for name in names}


def test_the_functions_have_exactly_the_form_that_servers_call():
    assert list(inspect.signature(Selection.count).parameters) == ["self", "sizes", "budget"]
    assert list(inspect.signature(Selection.keep_mask).parameters)[:4] == ["self", "features", "sizes", "budget"]
    divprune = tr.selection("divprune")
    features = torch.randn(96, 16, generator=torch.Generator().manual_seed(1))
    mask = divprune.keep_mask(features, (4, 4, 6), 0.25)
    assert mask.dtype == torch.bool
    assert mask.shape == (96,)
    assert int(mask.sum()) == divprune.count((4, 4, 6), 0.25) == 24


@pytest.mark.parametrize("name", served())
def test_as_many_are_left_as_were_counted(name):
    made = selection(name)
    for sizes in SIZES:
        layout = sizes if isinstance(sizes, Layout) else Layout(*sizes[-2:], frames=sizes[0] if len(sizes) == 3 else 1)
        features = torch.randn(layout.num_tokens, 16, generator=torch.Generator().manual_seed(0))
        for budget in BUDGETS:
            left = made.reduced(features, sizes, budget, signals(made, layout))
            assert len(left.rows) == len(left.place) == made.count(sizes, budget)


@pytest.mark.parametrize(("reason", "names"), REFUSED.items())
def test_what_cannot_be_counted_ahead_is_refused_with_the_reason(reason, names):
    for name in names:
        with pytest.raises(ValueError, match=reason):
            tr.selection(name)


@pytest.mark.parametrize("name", ["divprune", "hiprune", "fastervlm", "visionzip", "pool"])
def test_rows_are_those_of_the_wrapped_model(name):
    """Signals are taken off the wrapped model, as a server takes them off its own tower."""
    model = llava()
    inputs = prompt(model, [1], pad="left")
    heard: dict = {}
    cls = registry()[name]

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Noting(cls, register=False):
        def reduce(self, tokens):
            heard.update(tokens.signals, features=tokens.features, layout=tokens.layout, project=tokens.projector)
            plan = super().reduce(tokens)
            heard["rows"] = plan.carry(tokens.features) if plan.features is None else plan.features
            return plan

    with tr.wrapped(model, Noting(keep=0.25)), torch.no_grad():
        model(**inputs)
    facts = tr.wrap(model, name)._tokenreduce.facts
    made = tr.selection(name, facts=facts)
    given = {need: heard[need][0] for need in made.needs}
    left = made.reduced(heard["features"][0], heard["layout"], 0.25, given, heard["project"])
    assert torch.equal(left.rows, heard["rows"][0])


def test_what_travels_beside_is_selected_or_averaged_alike():
    features = torch.randn(16, 8, generator=torch.Generator().manual_seed(2))
    numbers = torch.arange(16.0)[:, None]
    left = tr.selection("divprune").reduced(features, (4, 4), 4, beside=numbers)
    assert left.beside[:, 0].long().tolist() == left.place.tolist()
    pooled = tr.selection("pool").reduced(features, (4, 4), 4, beside=numbers)
    assert pooled.beside[:, 0].tolist() == [2.5, 4.5, 10.5, 12.5]


def test_mistakes_are_told():
    divprune, features = tr.selection("divprune"), torch.randn(16, 8)
    with pytest.raises(ValueError, match=r"features of shape \(16, 8\)"):
        divprune.keep_mask(features, (4, 5))
    with pytest.raises(ValueError, match="sizes="):
        divprune.count((4,))
    with pytest.raises(ValueError, match="outside"):
        divprune.count((4, 4), 1.5)
    with pytest.raises(ValueError, match="joins tokens"):
        tr.selection("pool").keep_mask(features, (4, 4), 4)
    with pytest.raises(ValueError, match=r"say which blocks there are.*facts="):
        tr.selection("fastervlm")
    with pytest.raises(ValueError, match="looks at ClsAttention"):
        tr.selection("fastervlm", facts=USUAL).keep_mask(features, (4, 4), 4)
    with pytest.raises(ValueError, match="what each picture needs"):
        tr.selection("prumerge", facts=USUAL, keep="auto")
