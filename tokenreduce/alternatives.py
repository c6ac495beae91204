"""What to say where a method does not fit a model: those that do."""

from __future__ import annotations

from collections.abc import Sequence

from tokenreduce.method import Method
from tokenreduce.model_facts import ModelFacts
from tokenreduce.pipeline import Pipeline
from tokenreduce.registry import registry


def instead_of(methods: Sequence[Method], facts: ModelFacts) -> list[str]:
    """Names of methods that fit a model of ``facts``, where one of ``methods`` does not, whatever its parameters.

    Empty where each would fit with its defaults: then a parameter is wrong.
    """
    odd = [m for m in methods if not _fits(type(m), facts)]
    if not odd:
        return []
    wanted = set(odd[0].media)
    return [name for name, cls in registry().items() if wanted & set(cls.media) and _fits(cls, facts)]


def _fits(cls: type[Method], facts: ModelFacts) -> bool:
    try:
        Pipeline([cls()], facts)
    except (TypeError, ValueError):
        return False
    return True
