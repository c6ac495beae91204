"""PaliGemma: a SigLIP tower without pooling, images first, a prompt whose tokens attend to each other both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.families.tile_grid import TileGrid
from tokenreduce.adapters.upstream.cache import given_cache


class PaliGemma(TileGrid):
    model_types = ("paligemma",)
    pixel_mean = pixel_std = (0.5, 0.5, 0.5)
    units_enter = True
    remarks = "PaliGemma 1 and 2; the prompt attends both ways"
    windowed = False

    def two_way(self, arguments: Mapping[str, Any], embeds: Tensor) -> Tensor | None:
        kinds, cache = arguments.get("token_type_ids"), given_cache(arguments)
        if kinds is None or (cache is not None and cache.is_initialized and arguments.get("pixel_values") is None):
            return None  # what follows a prompt is causal
        return torch.where(kinds[:, -embeds.shape[1] :].to(embeds.device) == 0, 0, -1)
