"""Images cut into tiles by any-resolution processing: a base view, then tiles, unpadded, with a newline behind each row."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.families.llava import ClipTower, frames_of_videos
from tokenreduce.adapters.visual_inputs import NotedCall, Picture, TowerCall
from tokenreduce.layout import Layout


class AnyresTower(ClipTower):
    """What LLaVA-NeXT and LLaVA-OneVision share. Their own packing tells where each token of each tile goes."""

    tokens_per_image = None

    def noted_calls(self) -> list[NotedCall]:
        packing = NotedCall(self.core, "pack_image_features", views_packed, ahead=False)
        sizes = NotedCall(self.core, "get_image_features", image_sizes, ahead=True)
        return [packing, sizes, *frames_of_videos(self.core)]

    def arriving(self, call: TowerCall) -> list[Picture]:
        given = call.arguments.get("images")
        return self.pictures(call if given is None else replace(call, arguments=self.packing(given)))

    def packing(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What ``views_packed`` will note, told by arguments of the encoding before the tower runs; None: the model's own."""
        alone = given.get("batch_num_images")
        taken = inspect.signature(type(self.core).pack_image_features).parameters
        given = {
            name: getattr(self.core.config, name, None) if value is None else value
            for name, value in given.items()
            if name in taken
        }
        cut = [True] * len(given["image_sizes"]) if alone is None else [n == 1 for n in alone for _ in range(n)]
        views = [self._views(size) if own else 1 for size, own in zip(given["image_sizes"], cut)]
        return {"pack": {**given, "views": views}}

    def _views(self, size: Any) -> int:
        """Views of an image of ``size``, down and across."""
        config = self.core.config
        count = sys.modules[type(self.core).__module__].image_size_to_num_patches
        return count(size, config.image_grid_pinpoints, config.vision_config.image_size)

    def pictures(self, call: TowerCall) -> list[Picture]:
        if "pack" not in call.arguments:
            return self.videos(call)
        views = call.arguments["pack"]["views"]
        return [self._picture(*found) for found in zip(self._packed(call, self._numbers(views)), views)]

    def videos(self, call: TowerCall) -> list[Picture]:
        """The videos of a pass that was not packed as images."""
        return []

    def placed(self, call: TowerCall, values: Tensor, pictures: list[Picture]) -> list[Tensor]:
        if "pack" not in call.arguments:
            return super().placed(call, values, pictures)
        views = values.unsqueeze(-1).split(call.arguments["pack"]["views"])
        packed = self._packed(call, list(views))
        return [x[list(picture.tokens or ())] for x, picture in zip(packed, pictures, strict=True)]

    def _numbers(self, views: list[int]) -> list[Tensor]:
        """Each cell of each view by its number."""
        area = self.grid**2
        return [torch.arange(v * area).float().view(v, area, 1) for v in views]

    def _packed(self, call: TowerCall, features: list[Tensor]) -> list[Tensor]:
        """One-channel ``features``, (views, cells, 1) per image, as the model packs them: (columns,) each, newlines -1."""
        given = call.arguments["pack"]
        more = {k: v for k, v in given.items() if k not in ("views", "image_newline")}
        made = type(self.core).pack_image_features(
            self.core, features, image_newline=torch.full_like(features[0][0, 0], -1), **more
        )
        return [x[:, 0] for x in (made[0] if isinstance(made, tuple) else made)]

    def _picture(self, packed: Tensor, views: int) -> Picture:
        """From the number of the cell that each column holds; -1 for a newline."""
        area, columns = self.grid**2, len(packed)
        newline = packed < 0
        tokens = tuple((~newline).nonzero().flatten().tolist())
        if views == 1:
            return Picture(self.view(), columns, tokens)
        numbers = packed[~newline]
        if len(numbers) == area:  # a strip so long and narrow that unpadding leaves nothing of its tiles
            return Picture(Layout(self.grid, self.grid, views=(self.view(),)), columns, tokens, rows=views)
        height = int(newline.sum())
        width = (columns - area) // height - 1
        if not torch.equal(numbers, numbers.round()) or len(numbers.unique()) < len(numbers):  # scaled down as a whole
            both = (self.view(), Layout(height, width))
            return Picture(Layout(height, width, views=both), columns, tokens, rows=views, pooled=True)
        layouts, first, place = [], 0, torch.empty(len(numbers), dtype=torch.long)
        for v in range(views):
            here = numbers.long() // area == v
            own, order = (numbers[here].long() % area).sort()
            place[here] = first + order.argsort()
            layouts.append(Layout(self.grid, self.grid, cells=None if len(own) == area else tuple(own.tolist())))
            first += len(own)
        whole = Layout(height, width, cells=tuple(place.tolist()), views=tuple(layouts))
        return Picture(whole, columns, tokens, rows=views)


def views_packed(arguments: dict[str, Any]) -> dict[str, Any]:
    """How a pass of the tower is packed, without its features."""
    features = arguments.pop("image_features")
    return {"pack": {**arguments, "views": [len(x) for x in features]}}


def image_sizes(arguments: dict[str, Any]) -> dict[str, Any]:
    """What the images are like that the tower is about to see."""
    names = ("image_sizes", "vision_aspect_ratio", "vision_feature_select_strategy", "batch_num_images")
    return {"images": {name: arguments[name] for name in names if name in arguments}}
