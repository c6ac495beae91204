"""One image, several views: a method is given each tile or frame by itself, and its plans become one for the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from tokenreduce.kernels.fingerprint import combine
from tokenreduce.kernels.rows import take_rows
from tokenreduce.layout import Layout
from tokenreduce.method import Method
from tokenreduce.reduction import Reduction
from tokenreduce.schedules import largest_remainder
from tokenreduce.signals import Axis
from tokenreduce.tokens import VisualTokens
from tokenreduce.uploading import uploaded

Views = Sequence[tuple[Layout, tuple[int, ...]]]


def share_budget(k: int, sizes: Sequence[int]) -> list[int]:
    """``k`` tokens shared among views in proportion to ``sizes``, exactly, by largest remainder (ties: the first view)."""
    total = sum(sizes)
    return largest_remainder([Fraction(k * size, total) for size in sizes], k)


def view_of(views: Views, source: Tensor, assign: Tensor) -> Tensor:
    """(B, N) view that each current token belongs to; a summary token, to a view of what it stands for."""
    owner, _ = _places(views, source.device)
    own = owner[source.clamp_min(0)]
    if assign.shape[1] == source.shape[1]:  # untouched so far: no summaries
        return own
    stood = torch.full_like(source, -1).scatter_reduce(
        1, assign.clamp_min(0), torch.where(assign < 0, -1, owner.expand_as(assign)), "amax"
    )
    return torch.where(source < 0, stood, own)


def reduce_views(method: Method, tokens: VisualTokens, views: Views, of: Tensor, sizes: Sequence[int]) -> Reduction:
    """Ask ``method`` about each view and join its plans.

    Args:
        tokens: the current tokens of B images of the same layout.
        views: of that layout, ``Layout.split``.
        of: (B, N) view of each current token; every image has ``sizes[p]`` tokens of view p.

    The image's budget is shared among its views in proportion to their tokens, and filled exactly.
    """
    _, local = _places(views, of.device)
    shares = _shares(method, tokens, sizes)
    at = of.sort(dim=1, stable=True).indices.split(list(sizes), dim=1)  # current tokens of each view, ascending
    alike: dict[tuple[Layout, int, int | str | None], list[int]] = {}
    for p, (layout, _) in enumerate(views):
        alike.setdefault((layout, sizes[p], shares[p]), []).append(p)
    asked: dict[int, Reduction] = {}
    for (layout, _, share), own in alike.items():  # views of a kind are asked about together
        index = torch.stack([at[p] for p in own], dim=1)
        plan = _ask(method, _view(tokens, layout, index, local, own), share)
        asked |= {p: plan.rows(slice(i, None, len(own))) for i, p in enumerate(own)}
    return _joined([asked[p] for p in range(len(views))], at, tokens)


def _shares(method: Method, tokens: VisualTokens, sizes: Sequence[int]) -> Sequence[int | str | None]:
    """Of the image's budget, what each view is given as ``keep``; of one that adapts, its bounds are shared."""
    left = method.leaving(tokens)
    if left is None:
        return [None] * len(sizes)
    most, budget = share_budget(left, sizes), method.budget
    if not budget.adapts:
        return most
    low, high = (bound is not None for bound in budget.bounds)
    floors = share_budget(budget.least(tokens.num_tokens), sizes) if low else [0] * len(sizes)
    return [0 if not b else f"auto:{a or ''}-{b if high else ''}" for a, b in zip(floors, most)]


def _places(views: Views, device: torch.device) -> tuple[Tensor, Tensor]:
    """(N0,) view of every original token, and its place within that view."""
    n = sum(len(own) for _, own in views)
    owner, local = torch.empty(n, dtype=torch.long), torch.empty(n, dtype=torch.long)
    for p, (_, own) in enumerate(views):
        index = torch.tensor(own, dtype=torch.long)
        owner[index], local[index] = p, torch.arange(len(own))
    return owner.to(device, non_blocking=True), local.to(device, non_blocking=True)


def _view(tokens: VisualTokens, layout: Layout, index: Tensor, local: Tensor, own: list[int]) -> VisualTokens:
    """The tokens ``index`` (B, P, n) of the P views ``own``, each view an image of its own: B * P of them."""
    count = index.shape[1]

    def of(x: Tensor) -> Tensor:
        flat = index.flatten(1)
        return take_rows(x, flat).unflatten(1, index.shape[1:]).flatten(0, 1)

    def signal(x: Any, axis: Axis) -> Any:
        if axis == "token":
            return of(x)
        if axis == "text":
            return x.repeat_interleave(count)
        number = uploaded(own, x.device)
        if axis == "view":
            return x.index_select(1, number).flatten(0, 1)[:, None]
        return combine(torch.stack([x.repeat_interleave(count), number.repeat(len(x))], dim=1))

    source = of(tokens.source)
    return replace(
        tokens,
        features=of(tokens.features),
        layout=layout,
        source=torch.where(source < 0, source, local[source.clamp_min(0)]),
        size=of(tokens.size),
        role=of(tokens.role),
        signals={wanted: signal(value, wanted.axis) for wanted, value in tokens.signals.items()},
        entered=None,  # type: ignore[arg-type]  # a view is an image of its own, shown once
        assign=None,  # type: ignore[arg-type]
        notes={},
        sample=None if tokens.sample is None else tokens.sample.repeat_interleave(count),
    )


def _ask(method: Method, tokens: VisualTokens, share: int | str | None) -> Reduction:
    if share == 0:
        nothing = tokens.source.new_empty(len(tokens.source), 0)
        return Reduction.select(nothing, tokens.num_tokens, positions=method.positions)
    if share is not None:
        method, tokens = replace(method, keep=share), replace(tokens, share=share)
    if method.is_identity(tokens.num_tokens):
        return Reduction.identity(tokens, positions=method.positions)
    return method.checked(tokens)


def _joined(asked: list[Reduction], at: Sequence[Tensor], tokens: VisualTokens) -> Reduction:
    batch, n = tokens.features.shape[:2]
    device = tokens.features.device
    if any(plan.notes for plan in asked):
        raise ValueError(
            f"Reduction.notes={sorted(set().union(*(plan.notes for plan in asked)))} of one of several views; allowed: notes "
            "of a whole image, in the language model or at the projector with sees = 'image'"
        )
    explicit = any(r.features is not None for r in asked) or len({r.merges for r in asked if r.num_kept}) > 1
    assign = torch.empty(batch, n, dtype=torch.long, device=device)
    weight = torch.ones(batch, n, device=device)
    role, score = tokens.role.clone(), torch.full((batch, n), torch.nan, device=device)
    names: tuple[str, ...] = ()
    sources, places, exists, features, first = [], [], [], [], 0
    for plan, index in zip(asked, at):
        k = plan.num_kept
        joined = torch.where(plan.assign < 0, plan.assign, plan.assign + first)
        assign.scatter_(1, index, joined)
        if plan.weight is not None:
            weight.scatter_(1, index, plan.weight.float())
        if plan.role is not None:
            role.scatter_(1, index, plan.role)
            names = plan.role_names
        if plan.score is not None:
            score.scatter_(1, index, plan.score.float())
        summary = plan.source < 0
        source = torch.where(summary, plan.source, index.gather(1, plan.source.clamp_min(0)) if k else plan.source)
        last = index[:, -1:] if index.shape[1] else index.new_zeros(batch, 1)
        real = torch.ones_like(summary) if plan.valid is None else plan.valid
        place = torch.where(real, torch.where(summary, 2 * last + 1, 2 * source), 2 * n + 2)
        sources.append(source)
        places.append(place.sort(dim=1).values)  # rows keep the order of their plan
        exists.append(real)
        if explicit:
            features.append(plan.carry(take_rows(tokens.features, index)) if plan.features is None else plan.features)
        first += k
    order = torch.cat(places, dim=1).argsort(dim=1, stable=True)
    back = order.argsort(dim=1)
    ragged = any(plan.valid is not None for plan in asked)
    return Reduction(
        source=torch.cat(sources, dim=1).gather(1, order),
        assign=torch.where(assign < 0, assign, back.gather(1, assign.clamp_min(0))) if first else assign,
        merges=not explicit and any(plan.merges for plan in asked),
        weight=weight if any(plan.weight is not None for plan in asked) else None,
        features=take_rows(torch.cat(features, dim=1), order) if explicit else None,
        positions=asked[0].positions,
        role=role if names else None,
        role_names=names,
        score=score if any(plan.score is not None for plan in asked) else None,
        valid=torch.cat(exists, dim=1).gather(1, order) if ragged else None,
        in_order=all(plan.in_order for plan in asked),
    )
