"""Rows that repeat one prompt, as beams do, have to show the same pictures; not every model of transformers sees to it."""

from __future__ import annotations

import warnings

import transformers
from torch import Tensor


def show_the_same(embeds: Tensor, visual: Tensor, repeat: int) -> bool:
    """Whether each ``repeat`` rows of ``embeds`` (B, L, D) are equal in the columns ``visual`` (B, L); waits for the device."""
    rows = embeds.unflatten(0, (-1, repeat))
    differs = (rows != rows[:, :1]).any(dim=-1).flatten(0, 1)
    return not bool((differs.cpu() & visual).any())


def warn_of_mixed_pictures(model_type: str) -> None:
    """Say that ``generate`` of a model of this type gives pictures to the wrong rows."""
    warnings.warn(
        f"rows that repeat one prompt of this {model_type} model (beams, or several return sequences) show different pictures: "
        f"transformers {transformers.__version__} hands the pictures of a sample with several to its rows in the wrong order, "
        "with and without a reduction, and what is written is about mixed-up pictures. Use num_beams=1 and "
        "num_return_sequences=1, or one picture in each sample",
        stacklevel=2,
    )
