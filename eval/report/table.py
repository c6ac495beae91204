"""One row per cell of a sweep: scores with intervals over questions, against the unreduced model and against random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..recipe import UNREDUCED, Recipe
from ..sweep.store import DONE

RESAMPLES = 2000
COVERAGE = 0.95


@dataclass(frozen=True)
class Row:
    """A line of the table. Fields with ``_low`` and ``_high`` are ends of 95 % bootstrap intervals over questions.

    ``relative``: score over the unreduced model's; ``vs_random``: score minus that of ``random`` on the same questions, at the
    same budget, or at the nearest number of tokens where no such cell is there (``random_keep`` says which). Shares are of
    the unreduced prompt: ``token_share`` of the visual tokens averaged over decoder layers, ``flops_share`` of the prefill.
    ``ttft_ms`` is the median time to the first token while answering; ``ttft_share`` that time over the unreduced model's,
    measured in turns on the same prompts, vision tower included.
    """

    model: str
    task: str
    method: str
    keep: str
    state: str
    metric: str | None = None
    questions: int = 0
    score: float | None = None
    score_low: float | None = None
    score_high: float | None = None
    relative: float | None = None
    relative_low: float | None = None
    relative_high: float | None = None
    vs_random: float | None = None
    vs_random_low: float | None = None
    vs_random_high: float | None = None
    random_keep: str | None = None
    tokens_in: float | None = None
    tokens_kept: float | None = None
    equivalent_tokens: float | None = None
    token_share: float | None = None
    gflops: float | None = None
    flops_share: float | None = None
    ttft_ms: float | None = None
    ttft_share: float | None = None
    ttft_share_low: float | None = None
    ttft_share_high: float | None = None
    tokens_per_s: float | None = None
    method_ms: float | None = None
    peak_mib: float | None = None
    empty_answers: int | None = None
    error: str | None = None


def rows(cells: Sequence[dict[str, Any]]) -> list[Row]:
    """Rows of the cells of a store, per model and task: unreduced, random, then the methods, most tokens first."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        about = cell["cell"]
        loaded = (about["model"], about["base"], str(about["model_args"]), about["limit"], about["batch_size"])
        groups.setdefault((*map(str, loaded), about["task"]), []).append(cell)
    found = [row for _, group in sorted(groups.items()) for row in _group(group)]
    return sorted(found, key=lambda r: (r.model, r.task, _rank(r.method), r.method, -(r.equivalent_tokens or 0)))


def _rank(method: str) -> int:
    return {UNREDUCED: 0, "random": 1}.get(method, 2)


def _group(cells: Sequence[dict[str, Any]]) -> list[Row]:
    recipes = {cell["key"]: Recipe.from_dict(cell["cell"]["recipe"]) for cell in cells}
    done = [cell for cell in cells if cell["status"] == DONE]
    plain = next((cell for cell in done if not recipes[cell["key"]].methods), None)
    control = {recipes[cell["key"]].keep: cell for cell in done if recipes[cell["key"]].name == "random"}
    return [_row(cell, recipes[cell["key"]], plain, control) for cell in cells]


def _row(cell: dict[str, Any], recipe: Recipe, plain: Any, control: dict[str, Any]) -> Row:
    about = {
        "model": Path(cell["cell"]["model"]).name,
        "task": cell["cell"]["task"],
        "method": recipe.name,
        "keep": recipe.keep,
        "state": cell["status"],
    }
    if cell["status"] != DONE:
        return Row(**about, error=f"{cell['error']['kind']}: {cell['error']['text']}")
    result, cost = cell["result"], cell["result"]["measured"]
    own = _scores(result)
    found: dict[str, Any] = {
        "metric": result["metric"],
        "score": result["score"],
        "questions": len(result["questions"]),
    }
    if own:
        found["score_low"], found["score_high"] = interval(np.array([*own.values()]))
    if plain is not None:
        found |= _against(own, result["score"], plain["result"])
    if recipe.methods and recipe.name != "random" and control:
        near = min(control, key=lambda keep: (keep != recipe.keep, abs(_tokens(control[keep]) - _tokens(cell))))
        found["random_keep"] = near
        pairs = _paired(own, _scores(control[near]["result"]))
        if len(pairs):
            difference = pairs[:, 0] - pairs[:, 1]
            found["vs_random"] = float(difference.mean())
            found["vs_random_low"], found["vs_random_high"] = interval(difference)
    same = ("tokens_in", "tokens_kept", "equivalent_tokens", "ttft_ms", "tokens_per_s", "method_ms", "peak_mib")
    found |= {name: cost[name] for name in same}
    if cost["flops"] is not None:
        found |= {"gflops": cost["flops"] / 1e9, "flops_share": cost["flops"] / cost["flops_unreduced"]}
    if cost["tokens_in"]:
        found["token_share"] = cost["equivalent_tokens"] / cost["tokens_in"]
    if not recipe.methods:
        found["ttft_share"] = 1.0
    elif result.get("first_token") is not None:
        faster = result["first_token"]["speedup"]
        found["ttft_share"] = 1 / faster["median"]
        found["ttft_share_low"], found["ttft_share_high"] = 1 / faster["high"], 1 / faster["low"]
    return Row(**about, **found, empty_answers=result["empty_answers"])


def _tokens(cell: dict[str, Any]) -> float:
    return cell["result"]["measured"]["equivalent_tokens"] or 0.0


def _scores(result: dict[str, Any]) -> dict[Any, float]:
    return {q["doc_id"]: q["score"] for q in result["questions"] if q["score"] is not None}


def _paired(own: dict[Any, float], other: dict[Any, float]) -> np.ndarray:
    """(questions both answered, 2)."""
    return np.array([(own[i], other[i]) for i in own if i in other]).reshape(-1, 2)


def _against(own: dict[Any, float], score: float | None, plain: dict[str, Any]) -> dict[str, float]:
    if not plain["score"] or score is None:
        return {}
    found = {"relative": score / plain["score"]}
    pairs = _paired(own, _scores(plain))
    if len(pairs) and pairs[:, 1].mean() > 0:
        found["relative_low"], found["relative_high"] = interval(pairs[:, 0], pairs[:, 1])
    return found


def interval(values: np.ndarray, over: np.ndarray | None = None) -> tuple[float, float]:
    """Ends of the percentile bootstrap interval of the mean of ``values`` (n,), or of its ratio to the mean of ``over`` (n,).

    Questions are drawn with replacement, both columns together (Efron, Tibshirani 1993, chapter 13); the draw is fixed.
    """
    draw = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    means = values[draw].mean(1)
    if over is not None:
        below = over[draw].mean(1)
        means = means[below > 0] / below[below > 0]
    low, high = np.quantile(means, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)
