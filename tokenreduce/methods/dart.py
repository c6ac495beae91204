"""DART: keep the tokens that are least like a few pivots, since duplicates are what can be missed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenreduce.kernels.rows import unit_rows
from tokenreduce.kernels.top_k import top_k
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.signals import Columns, DecoderKeys, Hidden, Text
from tokenreduce.tokens import VisualTokens
from tokenreduce.uploading import uploaded
from tokenreduce.validation import choice, whole

ROLES = ("dropped", "pivot", "claimed")


@dataclass(frozen=True, kw_only=True)
class DART(Method):
    """Before decoder layer ``layer`` take the visual and text tokens with the largest keys as pivots; each in turn claims the
    visual tokens least similar to it. Visual pivots and what was claimed survive.

    Attributes:
        keep: fraction of N, or count per image, from layer ``layer`` on, visual pivots included.
        layer: number of decoder layers that see every token (the paper's K), at least 1.
        image_pivots, text_pivots: how many pivots there are of each kind; of the text, tokens behind the image, and fewer
            where there are fewer.
        norm: of keys, over all heads: ``l1``, as released, or ``l2``.
        pivot_order: in which order pivots claim: ``reference``, as the release runs through a set of positions, or ``norm``,
            visual pivots and then text ones, each by falling norm, which reads nothing back from the device.
        reference_count: count as released: visual pivots come on top of ``keep``, of which every pivot claims an equal share,
            rounded down.

    Source: Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More", EMNLP
        2025, arXiv 2502.11494.
    Departures from the release: the budget is exact, what does not divide goes to the first pivots; any batch, several images
        and videos, each by itself; fewer text tokens than pivots are allowed; ties go to the lowest index.
    """

    name = "dart"
    title = "the least like a few pivots"
    paper = "arXiv 2502.11494"
    stages = ("llm",)
    looks_at = "keys and output of decoder layer K-1, text behind the image"

    layer: int = 2
    image_pivots: int = 4
    text_pivots: int = 4
    norm: Literal["l1", "l2"] = "l1"
    pivot_order: Literal["reference", "norm"] = "reference"
    reference_count: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("norm", self.norm, ("l1", "l2"))
        choice("pivot_order", self.pivot_order, ("reference", "norm"))
        for argument, least in (("layer", 1), ("image_pivots", 0), ("text_pivots", 0)):
            value = getattr(self, argument)
            whole(argument, value, least, ". The paper uses 2 layers, 4 and 4 pivots.")
        if not self.image_pivots:
            raise ValueError("image_pivots=0; allowed: an int >= 1, since an image may come without text behind it")

    def most(self, n: int) -> int:
        return min(super().most(n) + (self.image_pivots if self.reference_count else 0), n)

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        if self.layer >= facts.decoder_depth:
            raise ValueError(
                f"layer={self.layer} leaves no decoder layer to shorten; this model has {facts.decoder_depth}, "
                f"allowed: 1 to {facts.decoder_depth - 1}"
            )
        keys, hidden = DecoderKeys(self.layer - 1), Hidden("final")
        needs = (keys, hidden, Columns(), Text("after", keys), Text("after", hidden))
        return (Step("llm", layer=self.layer, needs=needs),)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        keys, hidden, columns, text_keys, text = tokens.signals.values()
        n, k = tokens.num_tokens, self.budget.count(tokens.num_tokens)
        text_size = key_size(text_keys.features, self.norm).masked_fill(~text.valid, -torch.inf)
        own = top_k(key_size(keys, self.norm), self.image_pivots if self.reference_count else min(self.image_pivots, k))
        others = top_k(text_size, self.text_pivots)
        pivot = torch.cat([own, n + others], dim=1)
        exists = torch.cat([torch.ones_like(own, dtype=torch.bool), text.valid.gather(1, others)], dim=1)
        if self.pivot_order == "reference":
            places = torch.cat([columns, text.column], dim=1).gather(1, pivot)
            order = uploaded(set_order(places.tolist(), exists.tolist()), pivot.device)
            pivot, exists = pivot.gather(1, order), exists.gather(1, order)
        rows = unit_rows(torch.cat([hidden, text.features], dim=1))
        if self.reference_count:
            keep = self.budget.keep
            whole = int(keep * n) if isinstance(keep, float) else keep
            left = uploaded(min(whole, n - own.shape[1]), pivot.device)
        else:
            left = uploaded(k - own.shape[1], pivot.device)
        count = shares(left, exists, exact=not self.reference_count)
        kept = claimed(rows, pivot, count, own, n)
        role = kept.long() * 2 - torch.zeros_like(kept, dtype=torch.long).scatter_(1, own, 1)
        more = {"role": role, "role_names": ROLES, "positions": self.positions}
        if self.reference_count:
            return Reduction.where(kept, **more)
        return Reduction.select(top_k(kept.float(), k), n, **more)


def key_size(keys: Tensor, norm: str) -> Tensor:
    """(B, N) float32, the length of ``keys`` (B, N, H * d)."""
    return torch.linalg.vector_norm(keys.float(), 1 if norm == "l1" else 2, dim=-1)


def set_order(places: list[list[int]], exists: list[list[bool]]) -> list[list[int]]:
    """For each row of positions in the prompt, the order in which a set of those that exist is run through; the rest last."""
    orders = []
    for row, real in zip(places, exists, strict=True):
        there = [i for i, found in enumerate(real) if found]
        index = {row[i]: i for i in there}
        walk = set([row[i] for i in there])  # noqa: C403  (from a list, as released: how it was filled decides the order)
        orders.append([index[place] for place in walk] + [i for i in range(len(row)) if not real[i]])
    return orders


def shares(left: Tensor, exists: Tensor, *, exact: bool) -> Tensor:
    """(B, P) long: how many tokens each pivot that ``exists`` (B, P) bool claims of ``left``; the first ones what remains."""
    number = exists.sum(dim=1, keepdim=True)
    each = left // number
    rank = exists.cumsum(dim=1) - 1
    more = (rank < left - each * number) if exact else torch.zeros_like(exists)
    return (each + more.long()) * exists


def claimed(rows: Tensor, pivot: Tensor, count: Tensor, own: Tensor, n: int) -> Tensor:
    """(B, N) bool: visual pivots ``own`` (B, A), and what each ``pivot`` (B, P) in turn claims, ``count`` (B, P) tokens.

    ``rows`` (B, N + Q, D), at length 1, are the visual tokens and then the text. Ties go to the lowest index.
    """
    at = pivot[..., None].expand(-1, -1, rows.shape[-1])
    cosine = rows.gather(1, at) @ rows[:, :n].mT
    taken = torch.zeros_like(cosine[:, 0], dtype=torch.bool).scatter_(1, own, True)
    place = torch.arange(n, device=rows.device)
    for j in range(pivot.shape[1]):
        order = top_k(-cosine[:, j].masked_fill(taken, torch.inf), n)
        taken = taken.scatter(1, order, taken.gather(1, order) | (place < count[:, j : j + 1]))
    return taken
