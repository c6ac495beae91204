"""How much a vision tower attends to each patch: by its [CLS] token, or by what stands in where a tower has none."""

from __future__ import annotations

from typing import Literal

from tokenreduce.model_facts import ModelFacts
from tokenreduce.signals import AttentionReceived, ClsAttention, Signal

#: ``cls``: attention of the [CLS] query; ``global_mean``: attention received, averaged over all queries
Score = Literal["cls", "global_mean"]
SCORES = (None, "cls", "global_mean")


def saliency(
    name: str, facts: ModelFacts, block: int, score: Score | None = None, heads: Literal["mean", "max"] = "mean"
) -> Signal:
    """The request for the attention that patches get in tower block ``block`` (0-based), for the method ``name``.

    Args:
        score: which; None: ``cls`` where the tower has a [CLS] token, else ``global_mean``.
        heads: how heads of the [CLS] attention are reduced.

    Errors: ``ValueError`` where ``cls``, or the maximum over heads, is asked of a tower without a [CLS] token.
    """
    if score == "global_mean" or (score is None and not facts.has_cls and heads == "mean"):
        return AttentionReceived(block)
    if not facts.has_cls:
        asked = "score='cls'" if score == "cls" else f"heads={heads!r} of [CLS] attention"
        raise ValueError(
            f"method={name!r}: {asked}, but the vision tower of this {facts.family} model has no [CLS] token; allowed here: "
            "score='global_mean', the attention received from all tokens, which is also the default for such towers"
        )
    return ClsAttention(block, heads)


def saliency_substitute(facts: ModelFacts, score: Score | None) -> tuple[str, ...]:
    """What to say where ``saliency`` took the substitute by itself."""
    if score is not None or facts.has_cls:
        return ()
    return ("attention received from all tokens in place of [CLS] attention: the vision tower has no [CLS] token",)
