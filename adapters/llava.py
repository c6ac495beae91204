"""LLaVA-1.5: a CLIP or SigLIP tower, a pointwise projector, one run of placeholder tokens per image."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokenreduce.adapters.blocks import Block, TransformersBlock
from tokenreduce.adapters.family import Family
from tokenreduce.groups import Image
from tokenreduce.method import ModelFacts
from tokenreduce.tokens import STAGES, Layout

TOWERS = {"clip_vision_model": 1, "siglip_vision_model": 0}  # rows before the first patch


class Llava(Family):
    model_types = ("llava",)
    remarks = "CLIP or SigLIP tower; Llama, Mistral or Qwen2 language model"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        config = model.config
        vision = config.vision_config
        if vision.model_type not in TOWERS:
            raise ValueError(
                f"vision tower {vision.model_type!r} of this llava model is not supported; allowed: {', '.join(TOWERS)}. "
                "A tower whose number of tokens follows the image size needs a family file of its own."
            )
        self.grid = vision.image_size // vision.patch_size
        #: rows that the model itself cuts off before the projector
        self.cut = 1 if config.vision_feature_select_strategy == "default" else 0
        depth = vision.num_hidden_layers
        layer = config.vision_feature_layer
        layers = layer if isinstance(layer, (list, tuple)) else [layer]
        #: hidden state i is the output of block i - 1
        self.feature_block = max(i if i >= 0 else depth + 1 + i for i in layers) - 1

    @property
    def tower_prefix(self) -> int:
        return TOWERS[self.model.config.vision_config.model_type]

    @property
    def cells(self) -> list[int]:
        """Grid cell of every visual token of an image; negative for a forwarded [CLS]."""
        return [row - self.tower_prefix for row in range(self.cut, self.tower_prefix + self.grid**2)]

    def facts(self) -> ModelFacts:
        vision = self.model.config.vision_config
        return ModelFacts(
            family="llava",
            tower_depth=vision.num_hidden_layers,
            feature_block=self.feature_block,
            has_cls=self.tower_prefix > 0,
            tower_prefix=self.tower_prefix,
            tower_grid=(self.grid, self.grid),
            decoder_depth=self.decoder.config.num_hidden_layers,
            tokens_per_image=sum(cell >= 0 for cell in self.cells),
            # a tower without [CLS] whose first patch the model cuts off would lose a merged token's anchor
            stages=("projector", "llm", "cache") if self.cut > self.tower_prefix else STAGES,
        )

    def blocks(self) -> list[Block]:
        return [TransformersBlock(layer) for layer in self.tower.encoder.layers]

    def tower_attention(self, block: int) -> nn.Module:
        return self.tower.encoder.layers[block].self_attn

    def tower_tokens(self, values: Tensor) -> Tensor:
        return values[:, max(self.cut, self.tower_prefix) :]

    def locate(self, visual: Tensor) -> list[Image]:
        cells = self.cells
        patches = [i for i, cell in enumerate(cells) if cell >= 0]
        complete = len(patches) == self.grid**2
        layout = Layout(self.grid, self.grid, cells=None if complete else tuple(c for c in cells if c >= 0))
        images = []
        for sample, row in enumerate(visual):
            columns = row.nonzero().flatten()
            if len(columns) % len(cells):
                raise ValueError(
                    f"sample {sample} has {len(columns)} image placeholder tokens in this forward pass, not a multiple "
                    f"of the {len(cells)} of one image. An image must reach the language model in one piece: prepare "
                    "inputs with the model's own processor, and do not set prefill_chunk_size so that it cuts an image."
                )
            images += [Image(sample, run[patches], layout) for run in columns.split(len(cells)) if len(run)]
        return images
