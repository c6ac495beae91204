"""Which methods fit a model, where each would act there, and why others do not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from tokenreduce.method import Method, Step
from tokenreduce.registry import registry
from tokenreduce.tables import Table

if TYPE_CHECKING:
    from torch import nn


def fitting(model: nn.Module) -> Table:
    """One row per method: whether it fits ``model`` with its defaults, where it acts, and what stands in or stands against.

    Those that fit come first. Each is attached and taken off again, so that nothing is promised that ``tr.wrap`` would refuse;
    no weights are read, and ``model`` may be on the device "meta".

    Errors: those of ``tr.wrap`` for a model of an unknown family, and where ``model`` is wrapped already.
    """
    from tokenreduce.adapters.registry import family_of
    from tokenreduce.attachment import attachment_of, is_wrapped
    from tokenreduce.wrapping import wrapped

    family_of(model)  # what is no model at all is told once
    if is_wrapped(model):
        raise ValueError("model is wrapped, so nothing else can be tried on it; call tr.unwrap(model) first")
    rows = []
    for name, cls in registry().items():
        try:
            with wrapped(model, cls()):
                pipeline = attachment_of(model).hooks.pipeline
                where, remark = places(pipeline.steps), "; ".join(s.partition(": ")[2] for s in pipeline.substitutes)
        except (TypeError, ValueError) as error:
            where, remark = "", str(error.__cause__ or error)  # without the list of others
        fits = "no" if not where else "with a substitute" if remark else "yes"
        rows.append({"name": name, "fits": fits, "media": ", ".join(cls.media), "acts": where, "remark": remark})
    return Table(sorted(rows, key=lambda row: not row["acts"]))


def places(steps: Sequence[tuple[Method, Step]]) -> str:
    """Where ``steps``, in the order a token meets them, act: stages, with blocks and layers."""
    said = []
    for stage, own in groupby((step for _, step in steps), key=lambda step: step.stage):
        layers = sorted({step.layer for step in own if step.layer is not None})
        match stage:
            case "pixels":
                said.append(f"before block {layers[0]} of the tower" if any(layers) else "before the tower")
            case "encoder":
                said.append(f"in the tower, blocks {_runs(layers)}")
            case "projector":
                said.append("behind the projector")
            case "llm":
                said.append(f"from decoder layer {', '.join(map(str, layers))} on")
            case _:
                said.append("in the KV cache")
    return ", then ".join(said)


def _runs(numbers: Sequence[Any]) -> str:
    """``0-3, 7`` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
