"""Postcard: a SigLIP tower, patches averaged two by two, one token for each four."""

import torch.nn.functional as F

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.visual_inputs import Picture, Projection
from tokenreduce.layout import Layout
from tokenreduce.model_facts import ModelFacts


class Postcard(Family):
    model_types = ("postcard",)
    remarks = "SigLIP tower, four patches a token; Qwen3 language model"

    def __init__(self, model):
        self.model, self.core, self.decoder = model, model.model, model.get_decoder()
        self.towers = [self.core.eye]
        eye = model.config.eye_config
        self.grid = eye.image_size // eye.patch_size

    def facts(self):
        depth = self.model.config.eye_config.num_hidden_layers
        return ModelFacts(
            family="postcard",
            tower_depth=depth,
            feature_block=depth - 1,
            has_cls=False,
            tower_grid=(self.grid, self.grid),
            decoder_depth=self.decoder.config.num_hidden_layers,
            tokens_per_image=(self.grid // 2) ** 2,
            stages=("projector", "llm", "cache"),
        )

    def pictures(self, call):
        side = self.grid // 2
        return [Picture(Layout(side, side), side**2, pooled=True)] * call.rows

    def tower_tokens(self, values):
        return F.avg_pool2d(values.view(-1, 1, self.grid, self.grid), 2).flatten(1)

    @property
    def projectors(self):
        return [self.core.bridge]

    def projection(self):
        return Projection(self.core.bridge, self.core.bridge, self.core.bridge)

    def placeholder_ids(self):
        return {"image": self.model.config.stamp_token_id}
