"""What a prompt costs a decoder that attends to its pictures across."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokenreduce.adapters.hooks.picture_pass import PicturePass
from tokenreduce.adapters.upstream.cache import DynamicLayer
from tokenreduce.adapters.upstream.cross_attention import across_shape, layers_across
from tokenreduce.adapters.upstream.decoder_shape import decoder_shape
from tokenreduce.adapters.upstream.text_encoder import cache_layers
from tokenreduce.cost import Report
from tokenreduce.flops import AcrossShape, DecoderShape
from tokenreduce.traces import Trace


@dataclass(frozen=True)
class AcrossCost:
    """The layers of a decoder, which of them attend across, and the ``encoder`` of what they attend to, where there is one."""

    shape: DecoderShape
    across: AcrossShape
    layers: tuple[int, ...]
    encoder: DecoderShape | None = None

    @classmethod
    def of(cls, decoder: Any, encoder: Any = None) -> AcrossCost:
        encodes = None if encoder is None else decoder_shape(encoder)
        return cls(decoder_shape(decoder), across_shape(decoder), tuple(layers_across(decoder)), encodes)

    def flops(self, tokens: int, past: int, new: int, rows: int) -> int:
        """FLOPs of ``tokens`` behind ``past`` ones, which attend to ``rows``, ``new`` ones among them."""
        depth = self.shape.depth
        decoder = self.shape.prefill([tokens] * depth, [past] * depth) + self.across.flops(tokens, new, rows)
        if self.encoder is None:
            return decoder
        return decoder + self.encoder.prefill([new] * self.encoder.depth, [0] * self.encoder.depth)

    def visual_at(self, visual: list[int]) -> list[list[int]]:
        """What each layer that sees pictures is there for: those of the encoder, or those of the decoder that attend across."""
        if self.encoder is not None:
            return [visual] * self.encoder.depth
        return [visual if i in self.layers else [0] * len(visual) for i in range(self.shape.depth)]

    def report(
        self, reduced: PicturePass, trace: Trace, cache: Any, whole: int, tokens: Sequence[int], past: int
    ) -> Report:
        """Of a prompt of ``tokens`` per row behind ``past`` columns; ``whole``: rows attended to, earlier ones among them."""
        images, kept = trace.images_per_sample(), reduced.packings.at(0).counts
        before = reduced.offset
        flops, whole_flops, step, whole_step = 0, 0, 0, 0
        for n, k, rows in zip(tokens, kept, reduced.length_in):
            flops += self.flops(n, past, k, before + k)
            whole_flops += self.flops(n, past, rows, before + rows)
            step += self.flops(1, past + n, 0, before + k)
            whole_step += self.flops(1, past + n, 0, before + rows)
        visual = [sum(k for _, k in row) for row in images]
        return Report(
            tokens_in=[[n for n, _ in row] for row in images],
            tokens_kept=[[k for _, k in row] for row in images],
            tokens_at_layer=self.visual_at(visual),
            flops=flops,
            flops_unreduced=whole_flops,
            kv_bytes=self.bytes_of(cache, None),
            kv_bytes_unreduced=self.bytes_of(cache, whole),
            methods=tuple(method.name for method in reduced.pipeline.methods),
            substitutes=reduced.pipeline.substitutes,
            step=(step, whole_step),
            encoding=reduced.encoding,
            stopwatch=reduced.pipeline.stopwatch.lap(),
        )

    def bytes_of(self, cache: Any, rows: int | None) -> int:
        """Bytes of keys and values held; with ``rows``, if so many were attended to across."""
        total = 0
        for layer, across in cache_layers(cache, self.layers):
            for x in (layer.keys, layer.values):
                if isinstance(x, Tensor) and x.numel():
                    held = rows if rows is not None and across and isinstance(layer, DynamicLayer) else x.shape[-2]
                    total += x.numel() // x.shape[-2] * held * x.element_size()
        return total
