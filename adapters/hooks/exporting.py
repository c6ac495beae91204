"""Whether what runs is being written down for elsewhere, by torch.export, in a way that hooks cannot follow."""

from __future__ import annotations

import torch


def refuse_export() -> None:
    """The hooks of a vision-language model read on the host where a prompt shows pictures."""
    if torch.compiler.is_exporting():
        raise RuntimeError(
            "torch.export of a wrapped vision-language model: where its prompt shows pictures is looked up as it runs, so that "
            "a graph would hold the columns of the example inputs. Call tr.unwrap(model) and export it unreduced, export a "
            "wrapped vision tower by itself, or use torch.compile on the wrapped model"
        )


def refuse_strict_export() -> None:
    """A wrapped encoder is exported as it runs, not as its hooks are written."""
    if torch.compiler.is_exporting() and torch.compiler.is_dynamo_compiling():
        raise RuntimeError(
            "torch.export of a wrapped encoder with strict=True would have to compile its hooks; pass strict=False"
        )
