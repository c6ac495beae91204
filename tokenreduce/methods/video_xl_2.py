"""Video-XL-2: a video is read in chunks, and of blocks that the question is not about the cache keeps means of runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from tokenreduce.bilevel_cache import mean_of_units, pooled, whole_blocks
from tokenreduce.kernels.top_k import top_k
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.signals import Text
from tokenreduce.text_relevance import cosine_to_text
from tokenreduce.tokens import VisualTokens, frame_of
from tokenreduce.uploading import uploaded
from tokenreduce.validation import choice, whole

ROLES = ("pooled", "whole")


@dataclass(frozen=True, kw_only=True)
class VideoXL2(Method):
    """While a video is read, each chunk of its frames sees itself, ``previous`` chunks before it, and all text. Then the cache
    keeps the first, the last and the relevant blocks of frames; of the others, the means of the keys and values of every ``run``
    neighbours in a frame. Only then the text behind the video is read. A frame is what the model makes one of.

    Attributes:
        keep: 1.0 is off, as for every method. Any other budget is one of tokens, and here blocks decide; None, the default.
        block_size: frames of a chunk while the video is read; None: each sees everything before it.
        previous: chunks before its own that a chunk sees.
        chunk_size: frames of a block of the cache; ``run``, neighbours that become one entry of it.
        selected_units: units of two frames, counted from 0, that are relevant, whatever the model finds; empty: everything is.
            None: the ``topk`` units closest to the text of the prompt, by the mean cosine of their tokens with it.
        suffix_positions: ids of the text behind the video: the ``original`` ones, or from the ``cache_length`` on, as released.

    Source: Qin et al., "Video-XL-2: Towards Very Long-Video Understanding Through Task-Aware KV Sparsification", 2025,
        arXiv 2506.19225.
    Departures from the release: the text behind the video keeps its positions; without ``selected_units`` the model's own
        embeddings say what is relevant, in place of a retrieval model; a frame of fewer than ``run`` tokens is one run. See its
        page.
    """

    name = "video_xl_2"
    title = "video: read in chunks, a cache pooled where the question is not about it"
    paper = "arXiv 2506.19225"
    media = ("video",)
    stages = ("cache",)
    looks_at = "likeness of frames to the text"
    shortens = False

    keep: float | int | None = None
    block_size: int | None = 4
    previous: int = 3
    chunk_size: int = 4
    run: int = 4
    selected_units: tuple[int, ...] | None = None
    topk: int = 4
    suffix_positions: Literal["original", "cache_length"] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("block_size", self.block_size, 1, " (frames), 4 in the release", none=True)
        whole("previous", self.previous, 0, " (chunks), 3 in the release")
        whole("chunk_size", self.chunk_size, 1, " (frames), 4 or 6 in the release")
        whole("run", self.run, 1, " (neighbours that become one), 4 in the release")
        whole("topk", self.topk, 1, " (units of two frames), 4 to 8 in the release")
        choice("suffix_positions", self.suffix_positions, ("original", "cache_length"))
        if self.selected_units is not None:
            if not isinstance(self.selected_units, (tuple, list)):
                raise TypeError(
                    f"selected_units={self.selected_units!r}; allowed: units of two frames, such as (0, 5), or None"
                )
            object.__setattr__(self, "selected_units", tuple(self.selected_units))
            for unit in self.selected_units:
                whole("selected_units", unit, 0, " each, units of two frames counted from 0")

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        chunks = None if self.block_size is None else (self.block_size, self.previous)
        ids: Literal["continue", "cache_length"] = "continue" if self.suffix_positions == "original" else "cache_length"
        pooling = Step("cache", layer=0, split=True, chunks=chunks, decode_ids=ids)
        return (pooling,) if self.selected_units is not None else (Step("projector", needs=(Text(),)), pooling)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        frame, length = frame_of(tokens.layout, tokens.source), tokens.layout.frames
        if tokens.stage == "projector":
            near = cosine_to_text(tokens.features, tokens.signal(Text()))
            return Reduction.identity(tokens, notes={"relevance": mean_of_units(near, frame, length)})
        if self.selected_units is None:
            found = tokens.notes["relevance"]
            units = top_k(found, min(self.topk, found.shape[1]))
        else:
            units = uploaded(self.selected_units, frame.device, torch.long).expand(len(frame), -1)
        stays = whole_blocks(length, self.chunk_size, units).gather(1, frame // self.chunk_size)
        return replace(pooled(frame, stays, self.run), role=stays.long(), role_names=ROLES)
