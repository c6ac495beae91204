"""DeepSeek-OCR 2 and Step 3.7: tiles and the whole page, encoded in two passes."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from .common import END, IMAGE, START, Case, Draw, Piece, TinyFamily, gather, text
from .unheard import SAM

QUERIES = 8
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


class DeepseekOcr2(TinyFamily, key="deepseek_ocr2"):
    """Shapes are numbers of tiles; 8 queries for each, and a separator behind the page."""

    model: Any = getattr(transformers, "DeepseekOcr2ForConditionalGeneration", None)
    brief = True
    listens = False
    shapes = [2, 0, 3]
    sides = (64, 48)  # of a page, and of a tile

    def config(self, **variant: Any) -> Any:
        words = text("deepseek_ocr2_text", **EXPERTS, n_shared_experts=1, mlp_layer_types=["sparse"] * 5)
        del words["head_dim"]
        sam = {**SAM, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
        encoder = text("deepseek_ocr2_encoder", 2)
        del encoder["model_type"]
        tower = {"sam_config": {**sam, "downsample_channels": [16, 32]}, "encoder_config": encoder}
        own = {"vision_config": tower, "text_config": words, "image_token_id": IMAGE, "tie_word_embeddings": False}
        return transformers.DeepseekOcr2Config(**{**own, **variant})

    @torch.no_grad()
    def finish(self, model: Any) -> None:
        """A few queries for the many that the code fixes."""
        tower = model.base_model.vision_tower
        for name in ("query_768_resolution", "query_1024_resolution"):
            few = getattr(tower, name).weight[:QUERIES].clone()
            setattr(tower, name, nn.Embedding.from_pretrained(few))

    def tokens(self, tiles: int) -> int:
        return QUERIES * (tiles + 1) + 1

    def picture(self, config: Any, tiles: int, alone: bool, draw: Draw) -> Piece:
        page, tile = self.sides
        payload = {"pixel_values": draw.pixels(1, 3, page, page), "num_local_patches": torch.tensor([tiles])}
        if tiles:
            payload["pixel_values_local"] = draw.pixels(tiles, 3, tile, tile)
        return Piece("image", [START, *[IMAGE] * self.tokens(tiles), END], IMAGE, payload)

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        names = ("pixel_values", "num_local_patches", "pixel_values_local")
        return {name: x for own in names for name, x in gather(samples, own).items()}


class Step3p7(DeepseekOcr2, key="step3p7"):
    """2 x 2 tokens for each tile and for the picture; sliding layers in the decoder."""

    model: Any = getattr(transformers, "Step3p7ForConditionalGeneration", None)
    sides = (32, 32)

    def config(self, **variant: Any) -> Any:
        words = text("step3p5", **EXPERTS, sliding_window=256, share_expert_dim=16, mlp_layer_types=["sparse"] * 5)
        tower: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "image_size": 32}
        tower |= {"num_attention_heads": 2, "patch_size": 4, "max_position_embeddings": 64}
        own = {"vision_config": tower, "text_config": words, "image_token_id": IMAGE, "tie_word_embeddings": False}
        return transformers.Step3p7Config(**{**own, **variant})

    def finish(self, model: Any) -> None:
        pass

    def tokens(self, tiles: int) -> int:
        return 4 * (tiles + 1)

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        made = super().collate(samples, case, config)
        return {name: x.tolist() if name == "num_local_patches" else x for name, x in made.items()}
