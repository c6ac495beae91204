"""HunYuan-VL: begin, newlines and end among the placeholders of a picture, positions of four axes."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from .common import END, IMAGE, START, Case, Draw, Piece, TinyFamily, gather, text
from .qwen import rope, seen


class HunYuanVL(TinyFamily, key="hunyuan_vl"):
    """Grids in patches (rows, columns), 2 x 2 of which are a token."""

    model: Any = getattr(transformers, "HunYuanVLForConditionalGeneration", None)
    shapes = [(8, 8), (4, 12), (8, 6)]
    brief = True
    fault = (
        "numbers the pictures through the batch, so that the positions of a sample depend on the samples before it; pass one "
        "sample at a time, or position_ids of your own"
    )

    def config(self, **variant: Any) -> Any:
        tower: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2, "patch_size": 4}
        tower |= {"num_hidden_layers": 4, "text_hidden_size": 32, "out_hidden_size": 32, "spatial_merge_size": 2}
        tower |= {"max_image_size": 32, "img_max_token_num": 64}
        words = text("hunyuan_vl_text", **rope(1, 1, 1, 1))
        own = {"vision_config": tower, "text_config": words, "image_token_id": IMAGE, "tie_word_embeddings": False}
        return transformers.HunYuanVLConfig(**{**own, **variant})

    def mend(self, model: Any) -> None:
        model.model.get_rope_index = sample_by_sample(model.model.get_rope_index)

    def picture(self, config: Any, shape: Any, alone: bool, draw: Draw) -> Piece:
        down, across = shape[0] // 2, shape[1] // 2
        tokens = [START] + [IMAGE] * (down * (across + 1) + 2) + [END]
        payload = seen(draw, (1, *shape), "pixel_values", "image_grid_thw")
        payload["pixel_values"] = payload["pixel_values"].chunk(2, dim=1)[0]  # a patch is of one frame
        return Piece("image", tokens, IMAGE, payload)

    def collate(self, samples: list[list[Piece]], case: Case, config: Any) -> dict:
        out = {"mm_token_type_ids": (case.inputs["input_ids"] == IMAGE).long()}
        return out | gather(samples, "pixel_values") | gather(samples, "image_grid_thw")


def sample_by_sample(numbered: Any) -> Any:
    """``numbered``, which counts pictures through the batch, called for each sample by itself."""

    def each(
        input_ids: Any, mm_token_type_ids: Any, image_grid_thw: Any = None, attention_mask: Any = None, **more: Any
    ) -> Any:
        kinds = torch.nn.functional.pad(mm_token_type_ids, (1, 0)).diff(dim=1)
        grids = image_grid_thw.split((kinds == 1).sum(dim=1).tolist())
        masks = [None] * len(input_ids) if attention_mask is None else attention_mask.split(1)
        own = zip(input_ids.split(1), mm_token_type_ids.split(1), grids, masks, strict=True)
        ids, deltas = zip(*(numbered(*sample, **more) for sample in own), strict=True)
        return torch.cat(ids, dim=1), torch.cat(deltas)

    return each
