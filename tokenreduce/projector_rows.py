"""What methods have in common that look at the rows that enter the projector."""

from __future__ import annotations

from tokenreduce.method import ModelFacts


def rows_substitute(facts: ModelFacts) -> tuple[str, ...]:
    """What to say where a method looks at the rows that enter the projector."""
    if not facts.interpolated:
        return ()
    return (f"features in place of what enters the projector, for {facts.interpolated}",)
