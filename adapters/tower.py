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
    """Captures the tower's signals, one row per image, in the order in which images are encoded.

    Since transformers 5.18 ``generate`` encodes images before the forward pass, so values wait here; the door takes the
    rows of the latest images.
    """

    def __init__(self, family: Family, pipeline: Pipeline) -> None:
        self.family = family
        self.stopwatch = pipeline.stopwatch
        self.wanted = [s for s in pipeline.needs if s.part == "tower"]
        self.calls: deque[dict[Signal, Tensor]] = deque(maxlen=MAX_CALLS)
        self.blocks: dict[int, list[Signal]] = {}

    def attach(self, handles: list[Any]) -> None:
        """Append hooks and probes, each with ``remove``, to ``handles``; none when no tower signal is wanted."""
        if not self.wanted:
            return
        for signal in self.wanted:
            if isinstance(signal, ClsAttention):
                self.blocks.setdefault(signal.block, []).append(signal)
            elif isinstance(signal, AttentionReceived):
                self.blocks.setdefault(signal.layer, []).append(signal)
        handles.append(self.family.tower.register_forward_pre_hook(self.begin, with_kwargs=True))
        for block in self.blocks:
            handles.append(Probe(self.family.tower_attention(block), self.listen))

    def begin(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls.append({})
        if ImageFingerprint() in self.wanted:
            pixels = args[0] if args else kwargs["pixel_values"]
            with self.stopwatch(pixels.device):
                self.calls[-1][ImageFingerprint()] = fingerprint(pixels)

    @torch.no_grad()
    def listen(self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, scale: float) -> None:
        block = next(b for b in self.blocks if self.family.tower_attention(b) is module)
        with self.stopwatch(query.device):
            for signal in self.blocks[block]:
                if isinstance(signal, ClsAttention):
                    row = attention_row(query[:, :, :1], key, scale, heads=signal.heads)[:, 0]
                    value = self.family.tower_tokens(row)
                else:
                    value = self.family.tower_tokens(attention_received(query, key, scale))
                self.calls[-1][signal] = value

    def take(self, images: int) -> tuple[dict[Signal, Tensor], int]:
        """Values of the latest ``images`` images of the prompt, and how often each encoded image was repeated.

        Beam search and several return sequences repeat features after encoding, sample by sample.
        """
        if not self.wanted:
            return {}, 1
        values = {s: torch.cat([call[s] for call in self.calls]) for s in self.wanted} if self.calls else {}
        encoded = next(iter(values.values())).shape[0] if values else 0
        self.calls.clear()
        if encoded >= images:
            return {s: v[encoded - images :] for s, v in values.items()}, 1
        if encoded == 0 or images % encoded:
            raise ValueError(
                f"the prompt holds {images} images but the wrapped model's vision tower encoded {encoded} since the last "
                "prompt. Pass pixel_values to the wrapped model itself; features encoded before wrapping, or by another "
                "model, carry no attention statistics."
            )
        return values, images // encoded
