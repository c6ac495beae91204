"""DeepSeek-OCR 2: tiles, the whole page, a separator; tokens are queries that a small language model fills from patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.visual_inputs import NotedCall, Picture, TowerCall
from tokenreduce.layout import Layout


class TilesAndPage(Family):
    """Pages are encoded in one pass and their tiles in another; in the prompt the tiles of a page come in front of it."""

    tiled = True

    def layers(self, tower: int = 0) -> Any:
        return []

    def noted_calls(self) -> list[NotedCall]:
        return [NotedCall(self.core, "get_image_features", tiles_of_pages, ahead=True)]

    def view(self, call: TowerCall) -> Layout:
        """Layout of the tokens of a page, or of a tile."""
        raise NotImplementedError

    def pictures(self, call: TowerCall) -> list[Picture]:
        layout = self.view(call)
        return [Picture(layout, layout.num_tokens)] * call.rows

    def arranged(self, calls: Sequence[TowerCall], counts: Sequence[int]) -> list[int]:
        order, first = [], 0
        for call, count in zip(calls, counts):
            tile = first + count  # the pass that follows is that of the tiles
            for page, tiles in enumerate(call.arguments.get("tiles", ())):
                order += [*range(tile, tile + tiles), first + page]
                tile += tiles
            first += count
        return order


class DeepseekOcr2(TilesAndPage):
    model_types = ("deepseek_ocr2",)
    remarks = "tokens are queries and have no place on the page; tiles and the page are views; the separator stays"

    def view(self, call: TowerCall) -> Layout:
        tower, cells = self.towers[0], 1
        for side in call.shape[-2:]:
            cells *= halved(halved(side // tower.sam_encoder.config.patch_size))
        queries = tower.query_768_resolution if cells <= 144 else tower.query_1024_resolution
        return Layout(1, queries.num_embeddings)

    def pictures(self, call: TowerCall) -> list[Picture]:
        layout = self.view(call)
        n = layout.num_tokens
        if "tiles" not in call.arguments:
            return super().pictures(call)
        return [Picture(layout, n + 1, tuple(range(n)))] * call.rows


def halved(side: int) -> int:
    """Cells along a side behind a convolution of stride 2 that fills up the border."""
    return -(-side // 2)


def tiles_of_pages(given: dict[str, Any]) -> dict[str, Any]:
    """How many tiles each page has that the tower is about to see."""
    tiles, local = given.get("num_local_patches"), given.get("pixel_values_local")
    pages = len(given["pixel_values"])
    return {"tiles": [0] * pages if local is None or tiles is None else [int(n) for n in tiles]}
