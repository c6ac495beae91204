"""DART beyond its vectors: against a plain loop, with little text, exact counts, padding."""

from __future__ import annotations

import pytest
import torch
from models import IMAGE_TOKEN, llava, prompt

import tokenreduce as tr
from tokenreduce.layout import Layout
from tokenreduce.methods.dart import ROLES, set_order
from tokenreduce.signals import Columns, DecoderKeys, Hidden, Text
from tokenreduce.tokens import Rows, VisualTokens


def plain(keys, hidden, text_keys, text, column, k, order, a=4, t=4, norm=1):
    """One image: what is kept, token by token."""
    n = len(keys)
    own = sorted(range(n), key=lambda i: (-float(keys[i].abs().pow(norm).sum()), i))[: min(a, k)]
    others = sorted(range(len(text)), key=lambda i: (-float(text_keys[i].abs().pow(norm).sum()), i))[:t]
    pivots = [(column[i], hidden[i]) for i in own] + [(column[n + i], text[i]) for i in others]
    if order == "reference":
        places = [place for place, _ in pivots]
        by_place = dict(zip(places, pivots))
        pivots = [by_place[place] for place in list(set(places))]
    left, kept = k - len(own), list(own)
    for j, (_, h) in enumerate(pivots):
        share = left // len(pivots) + (j < left % len(pivots))
        rest = [i for i in range(n) if i not in kept]
        kept += sorted(rest, key=lambda i: (float(torch.cosine_similarity(h, hidden[i], dim=0)), i))[:share]
    return sorted(kept)


@pytest.mark.parametrize("order", ["reference", "norm"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("k", [1, 3, 4, 11, 29])
def test_it_equals_a_plain_loop(order, norm, k):
    """Three images, with nine, two and no tokens of text behind them."""
    torch.manual_seed(k)
    n, q, lengths = 30, 9, [9, 2, 0]
    keys, hidden = torch.randn(3, n, 12).double(), torch.randn(3, n, 8).double()
    text_keys, text = torch.randn(3, q, 12).double(), torch.randn(3, q, 8).double()
    valid = torch.arange(q) < torch.tensor(lengths)[:, None]
    column = torch.arange(n).expand(3, n) + torch.tensor([[5], [33], [60]])
    behind = torch.arange(q).expand(3, q) + column[:, -1:] + 1
    method = tr.DART(keep=k, norm=norm, pivot_order=order)
    own, state = DecoderKeys(1), Hidden("final")
    shown = {
        own: keys.float(),
        state: hidden.float(),
        Columns(): column,
        Text("after", own): Rows(text_keys.float(), valid, behind),
        Text("after", state): Rows(text.float(), valid, behind),
    }
    tokens = VisualTokens(hidden.float(), Layout(5, 6), "llm", 2, signals=shown)
    plan = method.reduce(tokens).check(tokens)
    for b, length in enumerate(lengths):
        places = [*column[b].tolist(), *behind[b].tolist()]
        wanted = plain(
            keys[b], hidden[b], text_keys[b, :length], text[b, :length], places, k, order, norm=1 if norm == "l1" else 2
        )
        assert plan.source[b].tolist() == wanted
        assert (plan.role[b] == ROLES.index("pivot")).sum() == min(4, k)
        assert (plan.role[b] > 0).nonzero()[:, 0].tolist() == wanted


def test_order_of_a_set_leaves_out_what_is_not_there():
    places = [[40, 3, 9, 77], [8, 1, 64, 0]]
    exists = [[True, True, False, True], [True, True, True, True]]
    assert set_order(places, exists) == [
        [[40, 3, 9, 77].index(p) for p in set([40, 3, 77])] + [2],  # noqa: C405
        [[8, 1, 64, 0].index(p) for p in set([8, 1, 64, 0])],  # noqa: C405
    ]


@pytest.mark.parametrize("order", ["reference", "norm"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_turn_the_keys(order, side):
    """``forward`` counts padding as positions, and a norm of rotated keys would see that."""
    model = llava()
    inputs = prompt(model, [1, 1, 1], side)
    with tr.wrapped(model, tr.DART(keep=7, pivot_order=order)), torch.no_grad():
        model(**inputs)
        together = [image.kept(4).tolist() for image in tr.trace(model).images]
        for b, mask in enumerate(inputs["attention_mask"].bool()):
            alone = {
                "input_ids": inputs["input_ids"][b : b + 1, mask],
                "pixel_values": inputs["pixel_values"][b : b + 1],
            }
            model(**alone)
            assert tr.trace(model).images[0].kept(4).tolist() == together[b]
            model(**alone, position_ids=torch.arange(9, 9 + int(mask.sum()))[None])
            assert tr.trace(model).images[0].kept(4).tolist() == together[b]


def test_an_image_at_the_end_has_visual_pivots_only():
    model = llava()
    inputs = prompt(model, [1])
    row = inputs["input_ids"][0]
    inputs["input_ids"] = torch.cat([row[row != IMAGE_TOKEN], row[row == IMAGE_TOKEN]])[None]
    with tr.wrapped(model, "dart", keep=9), torch.no_grad():
        model(**inputs)
        assert tr.report(model).tokens_kept == [[9]]


def test_the_count_of_the_release():
    model = llava()
    with tr.wrapped(model, "dart", keep=8, image_pivots=2, text_pivots=2, reference_count=True), torch.no_grad():
        model(**prompt(model, [1]))
        assert tr.report(model).tokens_kept == [[10]]


def test_wrong_parameters_teach():
    with pytest.raises(ValueError, match="layer=0; allowed: an int >= 1"):
        tr.DART(layer=0)
    with pytest.raises(ValueError, match="image_pivots=0; allowed: an int >= 1"):
        tr.DART(image_pivots=0)
    with pytest.raises(ValueError, match="norm='max'; allowed: 'l1', 'l2'"):
        tr.DART(norm="max")
    with pytest.raises(
        ValueError, match="layer=5 leaves no decoder layer to shorten; this model has 5, allowed: 1 to 4"
    ):
        tr.wrap(llava(), "dart", layer=5)
