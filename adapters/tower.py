"""What the vision tower is asked for while it runs, kept until the decoder's door needs it."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from tokenreduce.adapters.attention import Probe
from tokenreduce.adapters.family import Family
from tokenreduce.kernels.attention_received import attention_received
from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.kernels.fingerprint import fingerprint
from torch import Tensor, nn

from tokenreduce.pipeline import Pipeline
from tokenreduce.signals import AttentionReceived, ClsAttention, ImageFingerprint, Signal

MAX_CALLS = 64


class TowerTap:
    """Counts the images the tower encodes and captures its signals, one row per image, in the order of encoding.

    Since transformers 5.18 ``generate`` encodes images once, before the forward pass, and without a cache passes the
    same features in at every step; so values wait here, and stay until the tower runs again.
    """

    def __init__(self, family: Family, pipeline: Pipeline) -> None:
        self.family = family
        self.stopwatch = pipeline.stopwatch
        self.wanted = [s for s in pipeline.needs if s.part == "tower"]
        self.blocks: dict[int, list[Signal]] = {}
        for signal in self.wanted:
            if isinstance(signal, ClsAttention):
                self.blocks.setdefault(signal.block, []).append(signal)
            elif isinstance(signal, AttentionReceived):
                self.blocks.setdefault(signal.layer, []).append(signal)
        self.calls: deque[tuple[int, dict[Signal, Tensor]]] = deque(maxlen=MAX_CALLS)
        self.taken = False

    def attach(self, handles: list[Any]) -> None:
        """Append hooks and probes, each with ``remove``, to ``handles``."""
        handles.append(self.family.tower.register_forward_pre_hook(self.begin, with_kwargs=True))
        for block in self.blocks:
            handles.append(Probe(self.family.tower_attention(block), self.listen))

    def begin(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.taken:
            self.calls.clear()
            self.taken = False
        pixels = args[0] if args else kwargs["pixel_values"]
        values: dict[Signal, Tensor] = {}
        if ImageFingerprint() in self.wanted:
            with self.stopwatch(pixels.device):
                values[ImageFingerprint()] = fingerprint(pixels)
        self.calls.append((len(pixels), values))

    @torch.no_grad()
    def listen(self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, scale: float) -> None:
        block = next(b for b in self.blocks if self.family.tower_attention(b) is module)
        with self.stopwatch(query.device):
            for signal in self.blocks[block]:
                if isinstance(signal, ClsAttention):
                    value = attention_row(query[:, :, :1], key, scale, heads=signal.heads)[:, 0]
                else:
                    value = attention_received(query, key, scale)
                self.calls[-1][1][signal] = self.family.tower_tokens(value)

    def take(self, images: int) -> tuple[dict[Signal, Tensor], int]:
        """Values of the images of the prompt, and how many decoder rows share each encoded sample.

        Beam search and several return sequences repeat features after encoding, sample by sample. When more images
        were encoded than the prompt holds, the latest are meant.
        """
        self.taken = True
        calls = [(rows, known) for rows, known in self.calls if len(known) == len(self.wanted)]  # others were cut short
        encoded = sum(rows for rows, _ in calls)
        if encoded < images and (encoded == 0 or images % encoded):
            if not self.wanted:
                return {}, 1
            raise ValueError(
                f"the prompt holds {images} images but the wrapped model's vision tower encoded {encoded} since the last "
                "prompt. Pass pixel_values to the wrapped model itself; features encoded before wrapping, or by another "
                "model, carry no attention statistics."
            )
        values = {s: torch.cat([known[s] for _, known in calls]) for s in self.wanted}
        if encoded >= images:
            return {s: v[encoded - images :] for s, v in values.items()}, 1
        return values, images // encoded
