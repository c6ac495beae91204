"""Qwen3-VL in vLLM: text of the time stands in front of each frame of a video, and methods decide what each frame keeps.

How a prompt is laid out is not known before that, so text and tokens of a video are embedded together, as where vLLM itself
prunes videos.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration, Qwen3VLMultiModalProcessor

from tokenreduce.adapters.serving.vllm.positions import grid_ids, laid_out
from tokenreduce.adapters.serving.vllm.processing import reducing
from tokenreduce.adapters.serving.vllm.qwen_vl import QwenVL, picture_of
from tokenreduce.adapters.visual_inputs import Picture


@reducing(picture_of, text_travels=("video",))
class Qwen3VL(QwenVL, Qwen3VLForConditionalGeneration):
    def merging(self) -> list[Any]:
        merger = self.visual.merger
        return [merger.linear_fc1, merger.act_fn, merger.linear_fc2]

    def written(self, grid: Tensor, stamps: Any) -> tuple[Tensor, Tensor]:
        """(columns,) tokens of a whole video of ``grid`` (3,), with its time stamps, and where its visual tokens (N,) are."""
        side, mark = self.config.vision_config.spatial_merge_size, self.config.video_token_id
        frames, height, width = grid.tolist()
        content = Qwen3VLMultiModalProcessor.get_video_repl(
            tokens_per_frame=[height // side * (width // side)] * frames,
            timestamps=stamps,
            tokenizer=self._tokenizer,
            vision_start_token_id=self.config.vision_start_token_id,
            vision_end_token_id=self.config.vision_end_token_id,
            video_token_id=mark,
        )
        tokens = torch.tensor(content.full)
        return tokens, (tokens == mark).nonzero()[:, 0]

    def as_prompted(
        self, rows: list[Tensor], items: list[list[Picture]], modality: str, given: Mapping[str, Any]
    ) -> tuple[list[Tensor], list[list[Picture]]]:
        if modality == "image":
            return rows, items
        texts = [self.written(*own) for own in zip(given["video_grid_thw"], given["timestamps"])]
        among = [self.among_text(own, *text) for own, text in zip(rows, texts, strict=True)]
        told = [
            [replace(picture, columns=len(tokens), tokens=tuple(visual.tolist()))]
            for (picture,), (tokens, visual) in zip(items, texts, strict=True)
        ]
        return among, told

    def among_text(self, rows: Tensor, tokens: Tensor, visual: Tensor) -> Tensor:
        """(columns, C): ``rows`` (N, C) of a video's tokens, and text, without features for deeper layers, between them."""
        text = self.get_language_model().embed_input_ids(tokens.to(rows.device, non_blocking=True))
        made = rows.new_zeros(len(text), rows.shape[1])
        made[:, : text.shape[1]] = text
        return made.index_copy(0, visual.to(rows.device, non_blocking=True), rows)

    def ids_of(self, picture: Picture, modality: str, given: Mapping[str, Any], i: int) -> Tensor:
        if modality == "image":
            return super().ids_of(picture, modality, given, i)
        return self.video_ids(given["video_grid_thw"][i], given["timestamps"][i])

    def video_ids(self, grid: Tensor, stamps: Any) -> Tensor:
        """(3, columns) ids of a video: each frame is a picture behind the text of its time."""
        tokens, visual = self.written(grid, stamps)
        frame = self.grid_ids_of(grid)
        first = visual[:: frame.shape[1]].tolist()
        return laid_out(len(tokens), [(column, frame.shape[1], frame) for column in first])

    def grid_ids_of(self, grid: Tensor) -> Tensor:
        side = self.config.vision_config.spatial_merge_size
        _, height, width = grid.tolist()
        return grid_ids(1, height // side, width // side)

    def ids_in(self, features: list[Any]) -> Iterator[Tensor]:
        for feature in features:
            if feature.modality == "video":
                yield self.video_ids(feature.data["video_grid_thw"].data, feature.data["timestamps"].data)
            else:
                yield self.grid_ids_of(feature.data["image_grid_thw"].data)
