"""Aria: a padded SigLIP tower, and learned queries, as many as the patches of a tile ask for, that attend to its rows."""

from __future__ import annotations

from tokenreduce.adapters.families.tile_grid import TileGrid
from tokenreduce.adapters.visual_inputs import Picture, Projection, TowerCall
from tokenreduce.layout import Layout


class Aria(TileGrid):
    model_types = ("aria",)
    remarks = "tokens are queries, which have no place in the picture; tiles are views"
    tiled = True
    heard = False  # patches are scored, not queries

    def pictures(self, call: TowerCall) -> list[Picture]:
        side = self.model.config.vision_config.patch_size
        patches = (call.shape[-2] // side) * (call.shape[-1] // side)
        layout = Layout(1, self.core.multi_modal_projector.patch_to_query_dict[patches])
        return [Picture(layout, layout.num_tokens)] * call.rows

    def projection(self) -> Projection:
        way = self.core.multi_modal_projector.feed_forward
        return Projection(way, way, way)
