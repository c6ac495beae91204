"""Whether a model can serve a step around a decoder layer, which some tokens pass by."""

from __future__ import annotations

from tokenreduce.method import Step
from tokenreduce.model_facts import ModelFacts


def check_around_layer(name: str, step: Step, facts: ModelFacts) -> None:
    """Raise where tokens cannot pass by the layer of ``step``, a step ``when="layer"`` of the method ``name``."""
    if step.when != "layer":
        return
    if step.stage != "llm" or not step.layer or step.needs:
        raise ValueError(
            f"method={name!r}: when='layer' at stage {step.stage!r}, layer {step.layer}, needs={step.needs}; allowed: stage "
            "'llm', from layer 1 on, without needs: tokens.features is what enters the layer"
        )
    if facts.shared_from is not None:
        raise ValueError(
            f"method={name!r} lets tokens pass by decoder layer {step.layer}, but later layers of this {facts.family} model "
            "attend to keys of earlier ones, which would lack these tokens; use a method whose tokens leave for good"
        )
