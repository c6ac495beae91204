"""After the last decoder layer: the output at its full length again, and what the pass kept and cost."""

from __future__ import annotations

from typing import Any

from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.hooks.kv_cache import num_bytes
from tokenreduce.adapters.upstream.cache import Cache, returned_cache
from tokenreduce.cost import DecoderShape, Report
from tokenreduce.traces import Trace


def at_full_length(reduced: DecoderPass, output: Any) -> Any:
    """``output`` of the decoder with a hidden state for every column of the prompt; None where nothing is to change."""
    final = reduced.packings.at(reduced.depth - 1)
    if not final.moved:
        return None
    full = final.fill(output[0])
    if isinstance(output, tuple):
        return (full, *output[1:])
    output["last_hidden_state"] = full
    return output


def trace_of(reduced: DecoderPass) -> Trace:
    """Where the visual tokens of this prompt went."""
    return Trace(reduced.groups, reduced.visual, reduced.offset, reduced.pipeline.layers("llm"), reduced.repeat)


def report_of(reduced: DecoderPass, trace: Trace, decoder: Any, output: Any) -> Report:
    """What this prompt cost."""
    images = trace.images_per_sample()
    shape = DecoderShape.of(decoder.config)
    layers = range(reduced.depth)
    packings = reduced.packings
    widths = [packings.at(i).counts for i in layers]
    before = reduced.masks.past
    flops = sum(shape.prefill_flops([widths[i][b] for i in layers], before) for b in range(len(reduced.length_in)))
    past = [reduced.offset] * reduced.depth
    whole = sum(shape.prefill_flops([n] * reduced.depth, past) for n in reduced.length_in)
    cache = reduced.cache if reduced.cache is not None else returned_cache(output)
    held = num_bytes(cache) if isinstance(cache, Cache) else 0
    batch, length = reduced.visual.shape
    size = output[0].element_size()
    return Report(
        tokens_in=[[n for n, _ in row] for row in images],
        tokens_kept=[[k for _, k in row] for row in images],
        tokens_at_layer=[packings.visual_counts[packings.start(i)][:: reduced.repeat] for i in layers],
        flops=flops,
        flops_unreduced=whole,
        kv_bytes=held,
        kv_bytes_unreduced=held and batch * (reduced.offset + length) * shape.token_kv_bytes(size),
        methods=tuple(method.name for method in reduced.pipeline.methods),
        stopwatch=reduced.pipeline.stopwatch.lap(),
    )
