"""A cache step may merge: its rows hold the means of the keys and of the values of their tokens, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from models import IMAGE_TOKEN, llava, prompt
from probe_methods import CacheHalf

import tokenreduce as tr
from tokenreduce.method import Method, Step
from tokenreduce.reduction import Reduction


@dataclass(frozen=True, kw_only=True)
class Triples(Method, register=False):
    """Of every four tokens of a cache from ``layer`` on, the first three become their mean and the fourth leaves."""

    name = "triples"
    title = "means of three"
    stages = ("cache",)
    layer: int = 0
    made: bool = False

    def plan(self, facts):
        return (Step("cache", layer=self.layer),)

    def reduce(self, tokens):
        n = tokens.num_tokens
        at = torch.arange(n).expand(len(tokens.features), n)
        assign = torch.where(at % 4 == 3, -1, at // 4)
        source = torch.arange(0, n, 4).expand(len(at), -1)
        if self.made:
            return Reduction(source=source, assign=assign, features=tokens.features[:, ::4])
        return Reduction.merge(assign, source, positions=self.positions)


@pytest.fixture(scope="module")
def model():
    return llava("clip", "llama", "sdpa")


def merged(x, visual):
    """(H, n, d): ``x`` (H, L, d) of one row, the columns ``visual`` (N,) four by four, written down column by column."""
    columns = []
    for column in range(x.shape[1]):
        if column not in visual:
            columns.append(x[:, column])
        elif (visual.index(column)) % 4 == 0:
            columns.append((x[:, column] + x[:, column + 1] + x[:, column + 2]) / 3)
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("layer", [0, 2])
def test_entries_are_means_of_keys_and_values_and_are_read_as_such(model, layer):
    inputs = prompt(model, [1, 1])
    following = torch.tensor([[5], [9]])
    mask = torch.ones(2, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
    with torch.no_grad():
        bare = model(**inputs).past_key_values
        with tr.wrapped(model, Triples(layer=layer)):
            cache = model(**inputs).past_key_values
            for i, (held, exact) in enumerate(zip(cache.layers, bare.layers, strict=True)):
                for name in ("keys", "values"):
                    for b in range(2):
                        x = getattr(exact, name)[b]
                        visual = (inputs["input_ids"][b] == IMAGE_TOKEN).nonzero().flatten().tolist()
                        wanted = merged(x, visual) if i >= layer else x
                        torch.testing.assert_close(getattr(held, name)[b], wanted, atol=1e-6, rtol=1e-5)
            got = model(input_ids=following, attention_mask=mask, past_key_values=cache).logits
        if layer == 0:
            for exact in bare.layers:
                for name in ("keys", "values"):
                    rows = [
                        merged(
                            getattr(exact, name)[b],
                            (inputs["input_ids"][b] == IMAGE_TOKEN).nonzero().flatten().tolist(),
                        )
                        for b in range(2)
                    ]
                    setattr(exact, name, torch.stack(rows))
            at = torch.full((2, 1), inputs["input_ids"].shape[1])
            wanted = model(input_ids=following, position_ids=at, past_key_values=bare).logits
            torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-5)


def test_features_made_for_a_cache_are_refused(model):
    with (
        tr.wrapped(model, Triples(made=True)),
        pytest.raises(ValueError, match="allowed: tokens selected, or averaged"),
    ):
        model(**prompt(model, [1]))


def test_what_one_cache_step_dropped_stays_dropped_at_a_later_one(model):
    inputs = prompt(model, [1])
    n, length = int((inputs["input_ids"] == IMAGE_TOKEN).sum()), inputs["input_ids"].shape[1]
    with torch.no_grad(), tr.wrapped(model, CacheHalf(keep=0.5), CacheHalf(keep=0.5, layer=2)):
        cache = model(**inputs).past_key_values
    assert [layer.keys.shape[2] for layer in cache.layers] == [length - n // 2] * 2 + [length - n + n // 4] * 3
