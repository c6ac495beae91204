"""Baseline: the picture scaled down in front of the processor, by its name and budget."""

from __future__ import annotations

from dataclasses import dataclass

from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts


@dataclass(frozen=True, kw_only=True)
class Downscale(Method, register=False):
    """Scale each picture down until the processor makes no more than K visual tokens of it: ``tr.scaled_down``.

    It acts on pictures, and no model can be wrapped with it; a program that has the pictures (``tokenreduce sweep``,
    ``lmms_eval --model tokenreduce``) takes it by this name.
    """

    name = "downscale"
    title = "picture scaled down"
    stages = ()
    looks_at = "nothing"
    media = ("image",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions != "keep":
            raise ValueError(
                f"positions={self.positions!r} of downscale; allowed: 'keep'. The model makes the positions of a small picture"
            )

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        raise ValueError(
            "downscale acts on the picture, in front of the processor, and not inside a model: make the inputs of "
            f"tr.scaled_down(picture, {self.keep}, processor).picture and leave the model as it is; tokenreduce sweep and "
            "lmms_eval --model tokenreduce do that by themselves"
        )
