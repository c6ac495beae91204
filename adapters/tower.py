"""What the vision tower is asked for while it runs, kept until the decoder's door needs it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenreduce.adapters.attention import Probe
from tokenreduce.adapters.encoder import EncoderDoor, TowerState
from tokenreduce.adapters.family import Family
from tokenreduce.kernels.attention_received import attention_received
from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.kernels.fingerprint import fingerprint
from tokenreduce.pipeline import Pipeline
from tokenreduce.signals import AttentionReceived, ClsAttention, ImageFingerprint, Keys, Signal
from tokenreduce.tokens import Layout

MAX_CALLS = 64


@dataclass
class TowerCall:
    """One pass of the tower: how many images, their signals, what was merged."""

    rows: int
    values: dict[Signal, Tensor]
    state: TowerState | None = None


class Encoded(NamedTuple):
    """Encoded images of a prompt: signals, what was merged, and how many decoder rows share each sample."""

    values: dict[Signal, Tensor]
    state: TowerState | None
    repeat: int


class TowerTap:
    """Counts the images the tower encodes and captures its signals, one row per image, in the order of encoding.

    Since transformers 5.18 ``generate`` encodes images once, before the forward pass, and without a cache passes the
    same features in at every step; so values wait here, and stay until the tower runs again.
    """

    def __init__(self, family: Family, pipeline: Pipeline) -> None:
        self.family = family
        self.stopwatch = pipeline.stopwatch
        self.wanted = [s for s in pipeline.needs if s.part == "tower" and not isinstance(s, Keys)]
        self.blocks: dict[int, list[Signal]] = {}
        for signal in self.wanted:
            if isinstance(signal, ClsAttention):
                self.blocks.setdefault(signal.block, []).append(signal)
            elif isinstance(signal, AttentionReceived):
                self.blocks.setdefault(signal.layer, []).append(signal)
        self.calls: deque[TowerCall] = deque(maxlen=MAX_CALLS)
        self.taken = False
        facts = family.facts()
        layout = None if facts.tower_grid is None else Layout(*facts.tower_grid)
        blocks = family.blocks() if pipeline.layers("encoder") else []
        self.encoder = EncoderDoor(blocks, pipeline, layout, facts.tower_prefix)

    def attach(self, handles: list[Any]) -> None:
        """Append hooks and probes, each with ``remove``, to ``handles``."""
        handles.append(self.family.tower.register_forward_pre_hook(self.begin, with_kwargs=True))
        for block in self.blocks:
            handles.append(Probe(self.family.tower_attention(block), self.listen))
        if self.encoder.blocks:
            self.encoder.attach(handles)
            handles.append(self.family.tower.register_forward_hook(self.end))

    def begin(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.taken:
            self.calls.clear()
            self.taken = False
        pixels = args[0] if args else kwargs["pixel_values"]
        values: dict[Signal, Tensor] = {}
        if ImageFingerprint() in self.wanted:
            with self.stopwatch(pixels.device):
                values[ImageFingerprint()] = fingerprint(pixels)
        self.calls.append(TowerCall(len(pixels), values))

    def end(self, tower: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Note what was merged, and give the model its hidden states at full width."""
        state = self.encoder.state
        if state is None or not state.touched:
            return None
        self.calls[-1].state = state
        output["hidden_states"] = self.encoder.full_width(state, output["hidden_states"])
        return output

    @torch.no_grad()
    def listen(self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, scale: float) -> None:
        block = next(b for b in self.blocks if self.family.tower_attention(b) is module)
        bias = mask[:, 0, 0] if isinstance(mask, Tensor) and mask.is_floating_point() else None
        state = self.encoder.state if self.encoder.blocks else None
        with self.stopwatch(query.device):
            for signal in self.blocks[block]:
                if isinstance(signal, ClsAttention):
                    value = attention_row(query[:, :, :1], key, scale, bias=bias, heads=signal.heads)[:, 0]
                else:
                    value = attention_received(query, key, scale, bias=bias)
                if state is not None:
                    value = value.gather(1, state.entered[block].clamp_min(0))
                self.calls[-1].values[signal] = self.family.tower_tokens(value)

    def take(self, images: int) -> Encoded:
        """What is known of the images of the prompt.

        Beam search and several return sequences repeat features after encoding, sample by sample. When more images
        were encoded than the prompt holds, the latest are meant.
        """
        self.taken = True
        calls = [call for call in self.calls if len(call.values) == len(self.wanted)]  # others were cut short
        encoded = sum(call.rows for call in calls)
        if encoded < images and (encoded == 0 or images % encoded):
            if not self.wanted and not self.encoder.blocks:
                return Encoded({}, None, 1)
            raise ValueError(
                f"the prompt holds {images} images but the wrapped model's vision tower encoded {encoded} since the last "
                "prompt. Pass pixel_values to the wrapped model itself; features encoded before wrapping, or by another "
                "model, carry no attention statistics."
            )
        skip = max(0, encoded - images)
        values = {s: torch.cat([call.values[s] for call in calls])[skip:] for s in self.wanted}
        states = [call.state for call in calls if call.state is not None]
        return Encoded(values, TowerState.joined(states, skip) if states else None, max(1, images // encoded))
