"""The scores of a task as lmms-eval gave them, with what intervals need: entries per question, or resampled scores."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tokenreduce.adapters.upstream.lmms_eval import aggregation_of, is_mean

from ..statistics import mean_replicates, replicates
from .joined import joining_field

COSTS = (
    "tokens_in",
    "tokens_kept",
    "equivalent_tokens",
    "flops",
    "flops_unreduced",
    "kv_bytes",
    "kv_bytes_unreduced",
    "ttft_ms",
    "generate_ms",
    "method_ms",
)


def scores(
    results: dict[str, Any], task: str, samples: Sequence[dict[str, Any]], tasks: Mapping[str, Any]
) -> dict[str, Any]:
    """What a cell keeps of lmms-eval's ``results`` of ``task``, which may be a group.

    Args:
        samples: what the questions cost, as the meter measured it.
        tasks: lmms-eval's task objects by name, for their aggregations.

    Returns ``tasks`` {name: version, questions, metrics}, one per leaf and one per group that declares a mean of its own, each
    metric with value, higher_is_better, aggregation, ``cluster``, what names the questions that are drawn together, where there
    is such, and, unless it is the mean of its entries, ``replicates`` or ``without_interval``, the reason; ``questions``, one row
    each with ``scores`` by metric; and ``metric``, ``score``, ``higher_is_better`` of the first metric of the group, or else of
    the first leaf.

    Errors: ``ValueError`` when nothing was asked.
    """
    leaves = {name: _leaf(results, name, rows, tasks.get(name)) for name, rows in results["samples"].items() if rows}
    if not leaves:
        raise ValueError(f"task {task} has no questions here; give a larger limit")
    groups = {
        name: _group(results, name, table, leaves)
        for name, table in results.get("groups", {}).items()
        if name not in leaves and _numbers(table)
    }
    cost = {(row["task"], row["doc_id"]): row for row in samples}
    questions = [question for name in leaves for question in _questions(results, name, task, leaves[name], cost)]
    for leaf in leaves.values():
        del leaf["clusters"]
        for about in leaf["metrics"].values():
            if isinstance(about.get("replicates"), np.ndarray):
                about["replicates"] = None if about["aggregation"] == "mean" else about["replicates"].tolist()
    found = {**groups, **leaves}
    first: dict[str, Any] = next(iter(found.values())) if len(leaves) == 1 or groups else {"metrics": {}}
    metrics: dict[str | None, dict[str, Any]] = first["metrics"]
    metric, about = next(iter(metrics.items()), (None, {}))
    return {
        "tasks": found,
        "questions": questions,
        "metric": metric,
        "score": about.get("value"),
        "higher_is_better": about.get("higher_is_better", True),
    }


def _numbers(table: Mapping[str, Any]) -> dict[str, float | None]:
    """Scores by lmms-eval's keys, in its order; NaN and infinity as None."""
    return {
        name: (float(value) if math.isfinite(float(value)) else None)
        for name, value in table.items()
        if "," in name and "_stderr" not in name and isinstance(value, (bool, int, float, np.number))
    }


def _listed(results: dict[str, Any], name: str, keys: Sequence[str]) -> list[str]:
    """``keys`` in the order in which the task lists its metrics, without ``,none``'s ornament."""
    order = [m["metric"] for m in (results["configs"].get(name, {}).get("metric_list") or ())]
    rank = {metric: i for i, metric in enumerate(order)}
    return sorted(keys, key=lambda key: rank.get(key.split(",")[0], len(rank)))


def _leaf(results: dict[str, Any], name: str, rows: Sequence[dict[str, Any]], task: Any) -> dict[str, Any]:
    table, config = _numbers(results["results"].get(name, {})), results["configs"].get(name, {})
    by_filter: dict[str, dict[Any, dict[str, Any]]] = {}
    filters = list(dict.fromkeys(key.split(",", 1)[1] for key in table)) or ["none"]
    seen: dict[Any, int] = {}
    for row in rows:  # lmms-eval lists every question once per filter, filter by filter
        nth = seen[row["doc_id"]] = seen.get(row["doc_id"], -1) + 1
        by_filter.setdefault(row.get("filter") or filters[min(nth, len(filters) - 1)], {})[row["doc_id"]] = row
    ids = sorted(next(iter(by_filter.values())))
    first = next(iter(by_filter.values()))
    clusters = [_cluster(first[i], config.get("cluster_key")) for i in ids]
    metrics = {}
    for key in _listed(results, name, list(table)):
        metric, chosen = key.split(",", 1)
        entries = [by_filter.get(chosen, {}).get(i, {}).get(metric) for i in ids]
        higher = results.get("higher_is_better", {}).get(name, {}).get(metric)
        about = {"value": table[key], "higher_is_better": higher is not False, "entries": entries}
        docs = [by_filter.get(chosen, {}).get(i, {}).get("doc") for i in ids]
        metrics[key.removesuffix(",none")] = about | _resampled(
            name, entries, clusters, table[key], task, metric, docs, config.get("cluster_key")
        )
    return {
        "version": _version(config.get("metadata")) or results.get("versions", {}).get(name),
        "questions": len(ids),
        "metrics": metrics,
        "clusters": dict(zip(ids, clusters)),
        "rows": {i: [found[i] for found in by_filter.values() if i in found] for i in ids},
    }


def _version(metadata: Any) -> Any:
    """The version that a task declares in its metadata, a mapping or a list of them."""
    places = metadata if isinstance(metadata, list) else [metadata]
    return next((place["version"] for place in places if isinstance(place, dict) and "version" in place), None)


def _resampled(
    name: str,
    entries: list[Any],
    clusters: list[Any],
    score: float | None,
    task: Any,
    metric: str,
    docs: Sequence[Any] = (),
    cluster_key: str | None = None,
) -> dict[str, Any]:
    aggregate: Callable[..., Any] | None = None if task is None else aggregation_of(task, metric)
    if aggregate is None:
        return {"aggregation": "unknown", "without_interval": "its aggregation is not known"}
    told = {} if set(clusters) == {None} else {"cluster": cluster_key}
    called = getattr(aggregate, "__name__", "a function")
    if is_mean(aggregate) and all(entry is None or _value(entry) is not None for entry in entries):
        return {
            **told,
            "aggregation": "mean",
            "replicates": mean_replicates(name, [_value(e) for e in entries], clusters),
        }
    called = f"{called}()" if called == "mean" else called  # a mean of its own, not lmms-eval's
    if score is None:
        return {"aggregation": called, "without_interval": "it is no number"}
    if "args" in inspect.signature(aggregate).parameters:
        return {"aggregation": called, "without_interval": "its aggregation writes a file for submission"}
    field = joining_field(entries, docs, aggregate, cluster_key if told else None)
    if field is not None and not told:
        clusters = [None if entry is None else str(entry[field]) for entry in entries]
    about = {"aggregation": called, **told, **({} if field is None else {"cluster": field})}
    try:
        return {**about, "replicates": replicates(name, entries, clusters, aggregate, score, field)}
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else f"its aggregation refuses resamples: {error!r}"
        return {**about, "without_interval": reason[:300]}


def _group(results: dict[str, Any], name: str, table: Mapping[str, Any], leaves: dict[str, Any]) -> dict[str, Any]:
    """A group's own score: lmms-eval means those of its leaves, by size or not; which one is read off the result."""
    own = _descendants(results["group_subtasks"], name, leaves)
    metrics = {}
    for key, value in _numbers(table).items():
        short = key.removesuffix(",none")
        parts = [leaves[leaf]["metrics"][short] for leaf in own if short in leaves[leaf]["metrics"]]
        sizes = [leaves[leaf]["questions"] for leaf in own if short in leaves[leaf]["metrics"]]
        if not parts:
            continue
        about: dict[str, Any] = {"value": value, "higher_is_better": all(part["higher_is_better"] for part in parts)}
        about |= {"aggregation": "of its tasks", "without_interval": "its aggregation is not a mean of its tasks'"}
        for weights, called in ((sizes, "mean of tasks by size"), ([1] * len(parts), "mean of tasks")):
            made = [part["value"] for part in parts]
            if (
                value is None
                or None in made
                or not math.isclose(np.average(made, weights=weights), value, rel_tol=1e-9)
            ):
                continue
            about["aggregation"] = called
            if all(isinstance(part.get("replicates"), np.ndarray) for part in parts):
                del about["without_interval"]
                about["replicates"] = np.average([p["replicates"] for p in parts], axis=0, weights=weights).tolist()
            else:
                about["without_interval"] = "one of its tasks has no interval"
            break
        metrics[short] = about
    count = sum(leaves[leaf]["questions"] for leaf in own)
    return {"version": results.get("versions", {}).get(name), "questions": count, "metrics": metrics, "group": own}


def _descendants(children: Mapping[str, Sequence[str]], name: str, leaves: Mapping[str, Any]) -> list[str]:
    if name in leaves:
        return [name]
    return [leaf for child in children.get(name, ()) for leaf in _descendants(children, child, leaves)]


def _questions(
    results: dict[str, Any],
    name: str,
    task: str,
    leaf: dict[str, Any],
    cost: Mapping[tuple[str, Any], Mapping[str, Any]],
) -> list[dict[str, Any]]:
    found, metrics = [], leaf["metrics"]
    entries = {key: about.pop("entries") for key, about in metrics.items()}
    for position, (doc_id, rows) in enumerate(leaf.pop("rows").items()):
        row, measured = rows[0], cost.get((name, doc_id), {})
        numbers = {key: _value(values[position]) for key, values in entries.items()}
        reply = row["filtered_resps"]
        found.append(
            {
                "doc_id": doc_id if name == task else f"{name}/{doc_id}",
                "task": name,
                "cluster": leaf["clusters"][doc_id],
                "score": next((number for number in numbers.values() if number is not None), None),
                "scores": {key: number for key, number in numbers.items() if number is not None},
                "reply": reply[0] if len(reply) == 1 else reply,
                "target": str(row["target"]),
                "kind": row["doc"].get("kind"),
                **{cost_name: measured.get(cost_name) for cost_name in COSTS},
            }
        )
    return found


def _value(entry: Any) -> float | None:
    """The number in a question's entry: itself, or its field ``score``; None for none, and for NaN."""
    if isinstance(entry, dict):
        entry = entry.get("score")
    if isinstance(entry, (bool, int, float, np.number)) and math.isfinite(float(entry)):
        return float(entry)
    return None


def _cluster(row: Mapping[str, Any], key: str | None) -> str | None:
    """What a question belongs to: the field ``key`` of its document or of one of its entries."""
    if key is None:
        return None
    places = (row.get("doc") or {}, *(value for value in row.values() if isinstance(value, dict)))
    return next((str(place[key]) for place in places if key in place), None)
