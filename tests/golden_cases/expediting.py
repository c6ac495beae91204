"""Expediting: its clusters, its way back, or both, of tokens of a grid."""

from __future__ import annotations

from typing import Any

from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.methods.expediting import Expediting, Target
from tokenreduce.soft_clusters import rebuilding
from tokenreduce.token_rectangles import rectangles
from tokenreduce.tokens import VisualTokens


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    kind = params.one_of("function", ("cluster", "reconstruct", "both"), "cluster")
    if kind == "reconstruct":
        share = rebuilding(inputs["before"], inputs["after"], params["reconstruct_temperature"], params["k"], "l2")
        return rebuilt(share, inputs["refined"], params["k"])
    return clusters(inputs, params, dense=kind == "both")


def rebuilt(share: Tensor, refined: Tensor, k: int) -> dict[str, Tensor]:
    k = share.shape[2] if k < 0 else min(k, share.shape[2])
    return {"tokens": share @ refined, "neighbours": share.topk(k, dim=2).indices.sort(dim=2).values}


def clusters(inputs: Meta[Tensor], params: Meta[Any], dense: bool) -> dict[str, Tensor]:
    """The plan of the method: rows as the blocks behind it find them, and what it says of the way back."""
    x = inputs["tokens"]
    settings = {name: params[name] for name in ("iterations", "temperature", "window")}
    more = {name: params[name] for name in ("k", "reconstruct_temperature") if dense}
    method = Expediting(grid=tuple(params["grid"]), norm="l2", **settings, **more)
    rows = x.flatten(1, 2)
    tokens = VisualTokens(rows, Layout(*x.shape[1:3]), stage="encoder", layer=0)
    tokens.amount = Target(0, method.grid, dense)
    plan = method.reduce(tokens).check(tokens)
    (box,) = {*rectangles(tokens)}
    found = {"clusters": plan.carry(rows), "labels": method.clustered(rows, box, tokens.amount).nearest}
    if not dense:
        assert plan.restore is None
        return found
    naive = Expediting(grid=method.grid, naive=True, **settings).reduce(tokens).check(tokens)
    refined = inputs["refined"]
    return found | rebuilt(plan.restore, refined, params["k"]) | {"tokens_naive": naive.restore @ refined}
