"""Molmo 2: the whole picture and its crops, a token for every few patches that the processor lists; pictures attend both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.visual_inputs import NotedCall, Picture, Projection, TowerCall
from tokenreduce.layout import Layout, Medium
from tokenreduce.model_facts import ModelFacts
from tokenreduce.uploading import uploaded


class Molmo2(Family):
    model_types = ("molmo2",)
    remarks = "the whole picture and its crops are views; all pictures of a prompt attend to each other both ways"

    def layers(self, tower: int = 0) -> Any:
        return self.towers[tower].layers

    def facts(self) -> ModelFacts:
        depth, listed = len(self.layers()), self.model.config.adapter_config.vision_feature_layer
        return replace(super().facts(), feature_block=max(layer % depth for layer in listed), patches_per_token=4)

    def placeholder_ids(self) -> dict[Medium, int]:
        return {"image": self.model.config.image_token_id}  # of videos, too: the pass of the tower tells them apart

    def noted_calls(self) -> list[NotedCall]:
        return [
            NotedCall(self.core, "get_video_features", lambda given: {"videos": given["video_grids"]}, ahead=True),
            NotedCall(self.core, "get_image_features", listed, ahead=True),
        ]

    def pictures(self, call: TowerCall) -> list[Picture]:
        if "videos" in call.arguments:
            layouts = [Layout(h, w, frames=t, medium="video") for t, h, w in call.arguments["videos"].tolist()]
        else:
            grids = [(Layout(*grid[:2]), Layout(*grid[2:])) for grid in call.arguments["images"].tolist()]
            layouts = [Layout(crops.height, crops.width, views=(whole, crops)) for whole, crops in grids]
        return [Picture(layout, layout.num_tokens, rows=1, medium=None, pooled=True) for layout in layouts]

    def pooling(self, call: TowerCall) -> Tensor:
        """(tokens, P) the patches of each token, counted through all crops of the pass; -1: none."""
        pooling = call.arguments["pooling"].flatten(0, -2)
        return pooling[(pooling >= 0).any(dim=1)]

    def pieces(self, call: TowerCall, pixels: Tensor) -> list[Tensor]:
        patches = pixels.flatten(0, -2)
        own = self.pooling(call).split([picture.columns for picture in self.pictures(call)])
        return [patches[pool[pool >= 0].unique()][None] for pool in own]

    def per_picture(self, call: TowerCall, values: Tensor, pictures: list[Picture], block: int) -> list[Tensor]:
        pool = self.pooling(call).to(values.device)
        there = pool >= 0
        tokens = (values.flatten()[pool.clamp_min(0)] * there).sum(dim=1) / there.sum(dim=1)
        return list(tokens.split([picture.columns for picture in pictures]))

    def placed(self, call: TowerCall, values: Tensor, pictures: list[Picture]) -> list[Tensor]:
        listed = (call.arguments["pooling"].flatten(0, -2) >= 0).any(dim=1).nonzero().flatten()
        return list(values[listed.to(values.device)].split([picture.columns for picture in pictures]))

    def projection(self) -> Projection:
        way, embeddings = self.core.multi_modal_projector.image_projector, self.core.get_input_embeddings()
        placeholder = self.placeholder_ids()["image"]

        def run(rows: Tensor) -> Tensor:
            """Features are added to the embeddings of placeholders."""
            return way(rows) + embeddings(uploaded(placeholder, rows.device))

        return Projection(way, way, run)

    def two_way(self, arguments: Mapping[str, Any], embeds: Tensor) -> Tensor | None:
        kinds = arguments.get("mm_token_type_ids")
        if kinds is None:
            return None
        return torch.where(kinds[:, -embeds.shape[1] :].to(embeds.device) == 1, 0, -1)


def listed(given: dict[str, Any]) -> dict[str, Any]:
    """Which patches make a token, and the grids, of the pictures that the tower is about to see."""
    return {"pooling": given["image_token_pooling"], "images": given["image_grids"]}
