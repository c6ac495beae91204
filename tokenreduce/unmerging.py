"""Whether merged tokens can be read by the language model at all places they stand for."""

from __future__ import annotations

from collections.abc import Sequence

from tokenreduce.method import Method
from tokenreduce.model_facts import ModelFacts


def unmerges(methods: Sequence[Method], facts: ModelFacts) -> bool:
    """Whether one of ``methods`` wants that: attention over all tokens, everything else once for each row.

    Errors: ``ValueError`` where the decoder has no such places, or another method takes them away.
    """
    unmerging = next((method for method in methods if method.unmerges), None)
    if unmerging is None:
        return False
    said = f"method={unmerging.name!r} unmerges its tokens in the attention of the language model, but "
    if "llm" not in facts.stages:
        raise ValueError(
            f"{said}a {facts.family} model has no decoder whose sequence holds its pictures; leave the unmerging out"
        )
    others = [method.name for method in methods if method is not unmerging]
    if others:
        raise ValueError(
            f"{said}{', '.join(map(repr, others))} would take away tokens that it spreads; allowed: the method alone, or no "
            "unmerging"
        )
    return True
