"""A prompt read in two parts, by plain loops: each sample alone, explicit masks, its cache pooled head by head and run by run."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache
from zoo_oracle import Row, _tables, caught

from tokenreduce.adapters.upstream.cache import cache_argument
from tokenreduce.eval.doctor.shortened import decoder_of
from tokenreduce.methods.video_xl_2 import VideoXL2

#: per video of a sample, the columns of each frame
Videos = list[list[list[int]]]


def chunk_of(videos: Videos, size: int | None) -> dict[int, tuple[int, int]]:
    """Of each visual column, its video and the chunk of that; none where chunks are not told apart."""
    if size is None:
        return {}
    return {c: (v, f // size) for v, frames in enumerate(videos) for f, own in enumerate(frames) for c in own}


def first_mask(columns: list[int], videos: Videos, method: VideoXL2) -> Tensor:
    chunk = chunk_of(videos, method.block_size)
    mask = torch.full((len(columns), len(columns)), torch.finfo(torch.float32).min)
    for q, mine in enumerate(columns):
        for k, other in enumerate(columns[: q + 1]):
            (v, a), (w, b) = chunk.get(mine, (None, 0)), chunk.get(other, (None, 0))
            if v is None or w is None or v != w or a - b <= method.previous:
                mask[q, k] = 0.0
    return mask[None, None]


def pooled(x: Tensor, columns: list[int], videos: Videos, units: list[tuple[int, ...]], method: VideoXL2) -> Tensor:
    """(1, H, n, d): what is left of the keys or values ``x`` (1, H, T, d) of ``columns``."""
    place, out = {c: i for i, c in enumerate(columns)}, list[Tensor]()
    runs: dict[int, list[int]] = {c: [c] for c in columns}
    for frames, own in zip(videos, units, strict=True):
        blocks = range((len(frames) + method.chunk_size - 1) // method.chunk_size)
        stay = {0, len(blocks) - 1, *(2 * unit // method.chunk_size for unit in own)} if own else set(blocks)
        for f, frame in enumerate(frames):
            if f // method.chunk_size in stay:
                continue
            for i, c in enumerate(frame):
                run = frame[i : i + method.run] if i % method.run == 0 else []
                runs[c] = run if len(run) == method.run or (i == 0 and len(frame) < method.run) else []
    for c in columns:
        if runs[c]:
            out.append(torch.stack([x[:, :, place[m]] for m in runs[c]]).mean(dim=0))
    return torch.stack(out, dim=2)


class Reading:
    """One sample after its prompt was read: ``logits`` (T, V) of its columns, and what it takes to go on."""

    @torch.no_grad()
    def __init__(
        self, model, row: Row, end: int, videos: Videos, units: list[tuple[int, ...]], method: VideoXL2
    ) -> None:
        self.model, self.lm, self.cache = model, decoder_of(model), DynamicCache()
        before, behind = row.take(row.columns < end), row.take(row.columns >= end)
        columns = before.columns.tolist()
        first = self.run(before, first_mask(columns, videos, method))
        for layer in self.cache.layers:
            layer.keys, layer.values = (pooled(x, columns, videos, units, method) for x in (layer.keys, layer.values))
        self.shift = 0
        if method.suffix_positions == "cache_length":
            self.shift = int(behind.ids[0, 0]) - self.cache.layers[0].keys.shape[2]
        self.following = int(row.ids[0, -1]) + 1
        self.logits = torch.cat([first, self.read(behind)])

    def read(self, row: Row) -> Tensor:
        held, new = self.cache.layers[0].keys.shape[2], len(row.columns)
        mask = torch.full((new, held + new), torch.finfo(torch.float32).min).triu(held + 1)
        return self.run(replace(row, ids=row.ids - self.shift), mask[None, None])

    @torch.no_grad()
    def run(self, row: Row, mask: Tensor) -> Tensor:
        hidden = row.embeds
        for i, layer in enumerate(self.lm.layers):
            hidden = hidden + row.deepstack[i] if i in row.deepstack else hidden
            given = {cache_argument(type(layer).forward): self.cache, "position_embeddings": _tables(self.lm, row, "")}
            hidden = layer(hidden[None], attention_mask=mask, **given)[0]
        return self.model.lm_head(self.lm.norm(hidden))

    @torch.no_grad()
    def write(self, steps: int) -> list[int]:
        tokens, last = list[int](), self.logits[-1]
        for step in range(steps):
            tokens.append(int(last.argmax()))
            embed = self.model.get_input_embeddings()(torch.tensor(tokens[-1]))
            axes = self.axes
            ids = torch.full((axes, 1), self.following + step)
            last = self.read(Row(torch.tensor([-1]), embed[None], ids, torch.tensor([-1]), {}))[-1]
        return tokens

    @property
    def axes(self) -> int:
        return 3 if "mrope_section" in self.lm.config.rope_parameters else 1


def readings(
    model, inputs: dict, ends: list[int], videos: list[Videos], units, method, generate=False
) -> list[Reading]:
    """One of each sample of ``inputs``; its text begins at column ``ends``, its videos and their relevant units are told."""
    rows = caught(model, inputs, generate)
    return [Reading(model, row, *own, method) for row, *own in zip(rows, ends, videos, units, strict=True)]
