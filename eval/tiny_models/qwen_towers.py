"""EXAONE 4.5 and HyperCLOVA X Vision 2: towers of Qwen2.5-VL in front of decoders with positions on one axis."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import Exaone4_5_Config, Exaone4_5_ForConditionalGeneration

from .common import IMAGE, VIDEO, Case, Piece, text
from .qwen import TOWER, Qwen2VL

OWN = {"image_token_id": IMAGE, "video_token_id": VIDEO, "tie_word_embeddings": False}
WINDOWS = {"window_size": 16, "fullatt_block_indexes": [1, 3]}


class Exaone4_5(Qwen2VL, key="exaone4_5"):
    """Heads of the tower share keys; the decoder layers 0 and 2 look through a sliding window, and rotate nothing else."""

    brief = True
    model: Any = Exaone4_5_ForConditionalGeneration

    def config(self, window: int = 512, **variant: Any) -> Any:
        kinds = ["sliding_attention", "full_attention"] * 2 + ["full_attention"]
        words = text("exaone4", sliding_window=window, layer_types=kinds)
        tower = {**TOWER, **WINDOWS, "num_key_value_heads": 1}
        return Exaone4_5_Config(**{"vision_config": tower, "text_config": words, **OWN, **variant})

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        return untyped(super().collate(samples, case, config))


class HyperClovaX(Qwen2VL, key="hyperclovax_vision_v2"):
    """A linear layer behind the merger."""

    brief = True
    model: Any = getattr(transformers, "HyperCLOVAXVisionV2ForConditionalGeneration", None)  # from 5.18

    def config(self, **variant: Any) -> Any:
        tower = {"model_type": "qwen2_5_vl_vision", **TOWER, **WINDOWS}
        own = {"vision_config": tower, "text_config": text("hyperclovax"), **OWN}
        return transformers.HyperCLOVAXVisionV2Config(**{**own, **variant})

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        return untyped(super().collate(samples, case, config))


def untyped(inputs: dict) -> dict:
    return {name: x for name, x in inputs.items() if name != "mm_token_type_ids"}
