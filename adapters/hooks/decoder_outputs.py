"""After the last decoder layer: the output at its full length again, and what the pass kept and cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.hooks.kv_cache import num_bytes
from tokenreduce.adapters.upstream.cache import returned_cache
from tokenreduce.cost import Report, StepsRead
from tokenreduce.flops import DecoderShape
from tokenreduce.traces import Trace


def at_full_length(reduced: DecoderPass, output: Any) -> Any:
    """``output`` of the decoder with a hidden state for every column of the prompt; None where nothing is to change."""
    final = reduced.packings.behind(reduced.depth - 1)
    if not final.moved or output[0].shape[1] == 1 < final.width:  # a decoder that was asked for the last column alone
        return None
    full = final.fill(output[0])
    if isinstance(output, tuple):
        return (full, *output[1:])
    output["last_hidden_state"] = full
    states = output.get("hidden_states")
    if states is not None:  # what went into each layer, and what came out of the last one
        owners = [reduced.packings.behind(max(i - 1, 0)) for i in range(len(states) - 1)]
        filled = [h if h is None or not p.moved else p.fill(h) for h, p in zip(states, owners)]
        output["hidden_states"] = (*filled, full if states[-1] is not None else None)
    return output


def trace_of(reduced: DecoderPass) -> Trace:
    """Where the visual tokens of this prompt went."""
    return Trace(reduced.groups, reduced.visual, reduced.offset, reduced.pipeline.layers("llm"), reduced.repeat)


def with_last_alone(tokens: list[int], past: list[int], readers: list[int]) -> tuple[list[int], list[int]]:
    """What each layer works on and has before it, where ``readers`` work on the last token alone."""
    new = [1 if i in readers else n for i, n in enumerate(tokens)]
    return new, [before + n - own for before, n, own in zip(past, tokens, new)]


def pictured_at(reduced: DecoderPass, alive: list[Tensor], readers: list[int]) -> list[list[int]]:
    """By layer and sample: tokens that pass experts of pictures, of the columns ``alive`` (B, L) in each layer.

    ``readers`` work on the last token alone, which is none of a picture.
    """
    marked = reduced.pictured
    if marked is None:
        return [[0] * len(reduced.length_in) for _ in alive]
    counts = {id(columns): (columns & marked).sum(dim=1).tolist() for columns in alive}
    return [[0] * len(marked) if i in readers else counts[id(columns)] for i, columns in enumerate(alive)]


def parts_of(reduced: DecoderPass, alone: list[int]) -> list[tuple[list[list[int]], list[int], list[list[int]]]]:
    """Of each part in which a prompt is read: tokens that are worked on, by layer and sample; those held before, by layer; of the
    first, how many pass experts of pictures. In the layers ``alone`` only the last token is worked on.
    """
    at = [reduced.packings.at(i) for i in range(reduced.depth)]
    counts, rest = [packing.counts for packing in at], reduced.rest
    own = pictured_at(reduced, [packing.alive for packing in at], alone)
    if rest is None or rest.past is None:
        return [(counts, reduced.masks.past, own)]
    later = [rest.counts] * reduced.depth
    later_own = pictured_at(reduced, [rest.packing.alive] * reduced.depth, alone)
    return [(less(counts, later), reduced.masks.past, less(own, later_own)), (later, rest.past, later_own)]


def less(whole: list[list[int]], part: list[list[int]]) -> list[list[int]]:
    return [[n - m for n, m in zip(*rows, strict=True)] for rows in zip(whole, part, strict=True)]


def report_of(
    reduced: DecoderPass,
    trace: Trace,
    shape: DecoderShape,
    output: Any,
    uncounted: tuple[str, ...],
    steps_read: StepsRead,
) -> Report:
    """What this prompt cost a decoder of ``shape``; the pipeline's stopwatch is read and starts again at zero."""
    images, layers = trace.images_per_sample(), range(reduced.depth)
    packings, before = reduced.packings, reduced.masks.past
    readers = [i for i, holder in enumerate(reduced.masks.holders) if holder != i] if reduced.last_alone else []
    alone = readers if output[0].shape[1] == 1 else []
    parts = parts_of(reduced, alone)
    all_own = pictured_at(reduced, [torch.ones_like(packings.at(0).alive)] * reduced.depth, readers)
    flops = whole = step = whole_step = 0
    for b, length in enumerate(reduced.length_in):
        unreduced = with_last_alone([length] * reduced.depth, [reduced.offset] * reduced.depth, readers)
        for counts, past, own in parts:
            new = with_last_alone([row[b] for row in counts], past, alone)
            flops += shape.prefill(*new, [row[b] for row in own])
        flops -= 2 * reduced.spared[b]
        whole += shape.prefill(*unreduced, [row[b] for row in all_own])
        step += shape.step([before[i] + reduced.held(i)[b] for i in layers])
        whole_step += shape.step([reduced.offset + length] * reduced.depth)
    cache = reduced.cache if reduced.cache is not None else returned_cache(output)
    return Report(
        tokens_in=[[n for n, _ in row] for row in images],
        tokens_kept=[[k for _, k in row] for row in images],
        tokens_at_layer=[packings.visual_counts[packings.start(i)][:: reduced.repeat] for i in layers],
        flops=flops,
        flops_unreduced=whole,
        kv_bytes=num_bytes(cache),
        kv_bytes_unreduced=num_bytes(cache, reduced.offset + reduced.visual.shape[1]),
        methods=tuple(method.name for method in reduced.pipeline.methods),
        substitutes=reduced.pipeline.substitutes,
        step=(step, whole_step),
        signal_flops=reduced.signal_flops,
        encoding=reduced.encoding,
        uncounted=uncounted,
        stopwatch=reduced.pipeline.stopwatch.lap(),
        steps_read=steps_read,
    )
