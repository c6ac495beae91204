"""Command A Vision: as Aya Vision, without a norm before the projector, and a break behind every tile."""

from __future__ import annotations

from tokenreduce.adapters.families.aya_vision import AyaVision


class Cohere2Vision(AyaVision):
    model_types = ("cohere2_vision",)
