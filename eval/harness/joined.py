"""Which questions an aggregation counts together, as MME does those of a picture: they are to be drawn together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..statistics import named


def joining_field(
    entries: Sequence[Any], docs: Sequence[Any], aggregate: Callable[[list[Any]], Any], key: str | None = None
) -> str | None:
    """The field of entries by whose name ``aggregate`` joins questions to things, such as ``question_id``; None for none.

    A field that repeats, says the same in the question's document (so that it is one for every model), names a thing, not a
    kind (it ends in ``id``), and matters: with a name of its own for every question, ``aggregate`` gives another number or
    none. It is asked with made-up marks, right for the first question of each thing, so that the answer does not depend on a
    model's. The finest of several; of a task that names its ``cluster_key``, that ``key`` or none.
    """
    asked = [(entry, doc) for entry, doc in zip(entries, docs) if entry is not None]
    if not asked or not all(isinstance(entry, dict) and isinstance(doc, dict) for entry, doc in asked):
        return None
    own = [entry for entry, _ in asked]
    names = [name for name in own[0] if name.lower().endswith("id")] if key is None else [key]
    shared = [name for name in names if all(name in e and d.get(name) == e[name] for e, d in asked)]
    counts = {name: len({str(entry[name]) for entry in own}) for name in shared}
    for name in sorted(shared, key=lambda name: -counts[name]):
        if 1 < counts[name] < len(own) and _matters(own, name, aggregate):
            return name
    return None


def _matters(entries: Sequence[dict[str, Any]], name: str, aggregate: Callable[[list[Any]], Any]) -> bool:
    first = {str(entry[name]): i for i, entry in reversed(list(enumerate(entries)))}
    marked = [{**e, "score": float(first[str(e[name])] == i)} if "score" in e else e for i, e in enumerate(entries)]
    try:
        joined, apart = aggregate(list(marked)), aggregate([named(e, name, i) for i, e in enumerate(marked)])
        return not math.isclose(joined, apart, rel_tol=1e-9)
    except Exception:
        return True
