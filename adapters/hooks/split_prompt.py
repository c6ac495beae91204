"""A prompt in two parts: up to its last picture, and the text behind it, read once the cache is as the steps leave it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.hooks import decoder_inputs
from tokenreduce.adapters.hooks.decoder_layers import KEY
from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.hooks.kv_cache import adopt, state_of
from tokenreduce.adapters.hooks.rest_of_prompt import Rest
from tokenreduce.adapters.hooks.sequence_packing import Packing
from tokenreduce.adapters.upstream.attention import implementation
from tokenreduce.adapters.upstream.cache import NAMES, cache_argument
from tokenreduce.adapters.upstream.decoder import put_deep_stack
from tokenreduce.kernels.rows import take_rows
from tokenreduce.method import Method, Step
from tokenreduce.pipeline import Pipeline, acts
from tokenreduce.tokens import frame_of
from tokenreduce.uploading import uploaded

MASKED = ("sdpa", "eager", "flex_attention")  # attention that keeps to any mask
HIDDEN = ("last_hidden_state", "hidden_states")


def splitting(pipeline: Pipeline) -> tuple[Method, Step] | None:
    """The step behind which the text that follows the pictures is read, with its method; None: prompts are read at once."""
    return next(((method, step) for method, step in pipeline.steps if step.split), None)


def cut_off(reduced: DecoderPass, decoder: Any, kwargs: dict[str, Any]) -> bool:
    """Leave the text behind the last picture out of this pass, where a method asks for it; whether that was done.

    Errors: ``ValueError`` where it cannot be read afterwards as if it had come along.
    """
    found = splitting(reduced.pipeline)
    if found is None or not any(acts(found[0], group) for group in reduced.groups):
        return False
    refuse(reduced, *found, decoder, kwargs)
    visual, whole = reduced.visual, reduced.packings.by_first[0]
    length = visual.shape[1]
    ends = [int(row.nonzero()[-1]) + 1 if bool(row.any()) else length for row in visual]
    column = torch.arange(length, device=whole.alive.device)
    behind = column >= uploaded(ends, column.device)[:, None]
    after = (reduced.real & behind).sum(dim=1).tolist()
    if not any(after):
        return False
    given = {name: value for name, value in kwargs.items() if name not in NAMES}
    put_deep_stack(given, None)
    reduced.rest = Rest(Packing(whole.alive & behind, after), behind, given)
    before = [n - m for n, m in zip(whole.counts, after, strict=True)]
    reduced.packings.by_first[0] = Packing(whole.alive & ~behind, before)
    kwargs["use_cache"] = True  # what is read behind the pictures reads them there
    return True


def refuse(reduced: DecoderPass, method: Method, step: Step, decoder: Any, kwargs: dict[str, Any]) -> None:
    """Raise where a prompt cannot be read in two parts, or its chunks not be kept apart."""
    reads = f"method={method.name!r} reads the text behind a video once its cache is pooled"
    if reduced.masks.caller_says:
        raise ValueError(
            f"{reads}, but this call has packed rows (position_ids that start again, or a 4-D attention_mask); give each "
            "document a row of its own"
        )
    if step.chunks is not None and reduced.masks.two_way is not None:
        raise ValueError(
            f"method={method.name!r} hides chunks of a video from later ones, but visual tokens of this "
            f"{decoder.config.model_type} model attend both ways; allowed: block_size=None, with which chunks see everything"
        )
    kind = implementation(decoder.config)
    if step.chunks is not None and kind not in MASKED:
        raise ValueError(
            f"method={method.name!r} hides chunks of a video from each other, which attention {kind!r} is not told; load the "
            f"model with attn_implementation={' or '.join(map(repr, MASKED))}, or let chunks see everything before them, as "
            "block_size=None does"
        )
    if decoder.training and getattr(decoder, "gradient_checkpointing", False):
        raise ValueError(
            f"{reads}, and gradient checkpointing fills no cache; turn it off, or put the model in eval mode"
        )
    if kwargs.get("output_attentions") or getattr(decoder.config, "output_attentions", False):
        raise ValueError(
            f"{reads}, so that there are no attention maps of the whole prompt; leave out output_attentions"
        )


def note_chunks(reduced: DecoderPass) -> None:
    """Note which chunk of its video each column belongs to; what comes before a video, other videos too, is seen by all of it."""
    found = splitting(reduced.pipeline)
    if found is None or found[1].chunks is None:
        return
    method, (frames, before) = found[0], found[1].chunks
    own = [group for group in reduced.groups if acts(method, group)]
    if not own:
        return
    chunk = torch.full(reduced.visual.shape, -1, device=reduced.real.device)
    last, apart = max(member for group in own for member in group.members), chunk.shape[1]
    for group in own:
        at = frame_of(group.layout, group.source) // frames
        # of two videos in a row the later one counts lower, and so sees all of the one before it
        lift = [apart * (last - member) for member in group.members]
        chunk[group.samples[:, None], group.seats] = at + uploaded(lift, chunk.device)[:, None]
    reduced.masks.chunks = (chunk, before)


def read_rest(reduced: DecoderPass, decoder: Any, output: Any) -> Any:
    """Read the rest of the prompt behind the cache that the first part left; returns the output of both.

    Errors: ``ValueError`` for an output that is not known to be one part behind the other.
    """
    rest, cache = reduced.rest, reduced.cache
    assert rest is not None
    assert cache is not None
    state = state_of(cache)
    assert state is not None, "the first part left it"
    later = DecoderPass(
        decoder,
        reduced.pipeline,
        cache,
        rest.packing,
        state.real,
        state.shift,
        torch.zeros_like(reduced.visual),
        reduced.offset,
    )
    later.masks.windowed = reduced.masks.windowed
    given = {**rest.given, cache_argument(type(decoder).forward): cache, "use_cache": True}
    decoder_inputs.hand_over(later, decoder, given, changed=True)
    rest.past = later.masks.past
    behind = decoder(**given, **{KEY: later})
    for layer in range(reduced.depth):
        later.masks.visible(layer)
    adopt(cache, later.state())
    return joined(reduced, rest, output, behind)


def joined(reduced: DecoderPass, rest: Rest, first: Any, second: Any) -> Any:
    """The output of both parts, as a decoder would have given it that read them at once."""
    part = reduced.packings.by_first[0]
    counts = [n + m for n, m in zip(part.counts, rest.counts, strict=True)]
    whole = Packing(part.alive | rest.packing.alive, counts)
    reduced.packings.by_first[0] = whole

    def both(one: Tensor, other: Tensor) -> Tensor:
        wide = torch.where(rest.behind[..., None], rest.packing.fill(other), part.fill(one))
        return take_rows(wide, whole.order)

    named = not isinstance(first, tuple)
    others = [name for name in first if name not in (*HIDDEN, *NAMES)] if named else first[2:]
    if others:
        raise ValueError(
            f"a prompt is read in two parts, and the decoder returns {others if named else len(others)} beside its hidden "
            "states, of which it is not known how two become one; leave them out"
        )
    if not named:
        return (both(first[0], second[0]), *first[1:])
    first["last_hidden_state"] = both(first[0], second[0])
    if first.get("hidden_states") is not None:
        first["hidden_states"] = tuple(
            both(a, b) for a, b in zip(first.hidden_states, second.hidden_states, strict=True)
        )
    return first
