"""LLaVA-NeXT (1.6): every tile of an any-resolution image is a view of its own; newlines behind rows always stay."""

from __future__ import annotations

from tokenreduce.adapters.families.any_resolution import AnyresTower


class LlavaNext(AnyresTower):
    units_enter = True
    model_types = ("llava_next",)
    remarks = "tiles are views; row newlines stay"
