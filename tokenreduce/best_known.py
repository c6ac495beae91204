"""What ``auto`` is on a model: the best of a table that fits."""

from __future__ import annotations

import ast
import dataclasses
import logging
import re
from collections.abc import Sequence
from typing import Any

from tokenreduce.auto import Auto
from tokenreduce.best_known_table import ranked
from tokenreduce.method import Method
from tokenreduce.model_facts import ModelFacts
from tokenreduce.pipeline import Pipeline
from tokenreduce.registry import make

log = logging.getLogger(__name__)

_NAME = re.compile(r"(\w+)(?:\((.*)\))?")


def decided(methods: Sequence[Method], facts: ModelFacts, images_as_video: bool) -> tuple[list[Method], str]:
    """``methods`` with what ``auto`` is in its place, and in words what it is and why; empty where there is none."""
    made, why = list[Method](), []
    for method in methods:
        if isinstance(method, Auto):
            method, reason = decision(method, facts, images_as_video)
            why.append(reason)
        made.append(method)
    return made, "; ".join(why)


def decision(auto: Auto, facts: ModelFacts, images_as_video: bool = False) -> tuple[Method, str]:
    """What ``auto`` is on a model with ``facts``, and why.

    Errors: ``ValueError`` for a count on a model whose images differ in tokens, and where nothing in the table fits.
    """
    share = _share(auto, facts)
    kind = auto.kind or ("video" if images_as_video else "photo")
    said = []
    rows = list(auto.rows)
    for column, wanted, what in (
        ("family", facts.family, f"{facts.family} models"),
        ("kind", kind, f"kind {kind!r}"),
    ):
        own = [row for row in rows if getattr(row, column) in (wanted, "")]
        if not own:
            found = ", ".join(dict.fromkeys(getattr(row, column) for row in rows))
            said.append(f"nothing in the table is of {what}, so it is of {found}")
        rows = own or rows
    passed: list[str] = []
    candidates = ranked(rows, share)
    for place, (method, keep, score) in enumerate(candidates):
        try:
            made = _made(auto, method)
            Pipeline([made], facts)
        except (ValueError, TypeError) as error:
            passed.append(f"{method} ({error})")
            continue
        kept = score[0]
        equal = [name for name, _, other in candidates[place + 1 :] if other == score]
        tasks = list(dict.fromkeys(f"{row.task} of {row.model}" for row in rows if row.method == method))
        why = f"{kept:.0%} of the unreduced score at keep={keep:g}, the best of {len(candidates)} on {', '.join(tasks)}"
        said += [f"{', '.join(equal)} equal it there"] if equal else []
        said += (
            [f"passed over because they do not fit: {', '.join(p.partition(' ')[0] for p in passed)}"] if passed else []
        )
        chosen = f"{method}: " + "; ".join([why, *said])
        log.info("auto is %s", chosen)
        return made, chosen
    raise ValueError(f"method='auto' finds nothing that fits this {facts.family} model: {'; '.join(passed)}")


def _share(auto: Auto, facts: ModelFacts) -> float:
    """The budget as a share."""
    if isinstance(auto.keep, float):
        return auto.keep
    if facts.tokens_per_image is None:
        raise ValueError(
            f"method='auto' with keep={auto.keep!r}: a table is looked up by the share that is kept, and images of this "
            f"{facts.family} model differ in tokens; allowed: a fraction, such as keep=0.25"
        )
    return auto.budget.count(facts.tokens_per_image) / facts.tokens_per_image


def _made(auto: Auto, told: str) -> Method:
    """The method called ``told`` in a table, with this budget."""
    match = _NAME.fullmatch(told)
    if match is None:
        raise ValueError("it is not one method")
    own = {f.name: getattr(auto, f.name) for f in dataclasses.fields(Method)}
    given = {name: value for name, value in own.items() if value != Method.__dataclass_fields__[name].default}
    return make(match[1], **{**_parameters(match[2] or ""), **given, "keep": auto.keep})


def _parameters(text: str) -> dict[str, Any]:
    """From ``layer=1, score=cls``, as a report writes what differs from the defaults."""
    found = {}
    for part in filter(None, text.split(", ")):
        name, _, value = part.partition("=")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found
