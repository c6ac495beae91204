"""Whether the decoder is what the hooks take it for; where it is not, an error instead of an answer that could be wrong."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks.attention_masks import said_by
from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.hooks.kv_cache import physical_length
from tokenreduce.adapters.upstream.attention import implementation
from tokenreduce.adapters.upstream.cache import NAMES, DynamicLayer, cache_argument, stray_cache
from tokenreduce.adapters.upstream.seams import seam_changed
from tokenreduce.pipeline import Pipeline
from tokenreduce.signals import AttentionReceived, TextAttention


def check_decoder(decoder: Any) -> None:
    """Before anything is attached: the decoder takes its cache under a known name."""
    cache_argument(type(decoder).forward)


def refuse_stray_cache(kwargs: dict[str, Any]) -> None:
    """A cache that comes under an unknown name would be filled unseen."""
    name = stray_cache(kwargs)
    if name is not None:
        raise seam_changed("transformers", "the decoder's cache", f"passed as {' or '.join(NAMES)}", f"`{name}`")


def check_cache(reduced: DecoderPass) -> None:
    """After a shortened pass: the cache holds what it held before and the shortened chunk, layer by layer."""
    assert reduced.cache is not None
    for i, layer in enumerate(reduced.cache.layers[: reduced.depth]):
        if type(layer) is not DynamicLayer:
            continue  # windows, fixed sizes and recurrent states have lengths of their own
        held, due = int(physical_length(reduced.cache, i)), reduced.masks.past[i] + reduced.packings.at(i).width
        if held != due:
            raise seam_changed(
                "transformers",
                f"the cache of decoder layer {i} after a shortened prompt",
                f"{due} columns long, since the decoder writes to the cache that it is handed",
                f"{held} columns",
            )


def refuse_attentions(decoder: Any, kwargs: dict[str, Any]) -> None:
    """Attention maps of a shortened sequence do not have the caller's columns."""
    asked = kwargs.get("output_attentions")
    if asked or (asked is None and getattr(decoder.config, "output_attentions", False)):
        raise ValueError(
            "output_attentions=True, but attention maps of a shortened sequence have fewer rows and columns than the prompt; "
            "leave it out, wrap with output_length='reduced' to get them as they are, or unwrap the model first"
        )


def checked_mask(mask: Tensor, real: Tensor, reduced: DecoderPass) -> tuple[Tensor | None, Tensor | None]:
    """What the caller's 4-D ``mask`` says beyond causality and padding ``real`` (B, L); see ``said_by``."""
    length = real.shape[1]
    if mask.shape[1] != 1 or mask.shape[2:] != (length, length):
        if reduced.masks.past[0] or mask.shape[1] != 1:
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)}; for a wrapped model a 4-D mask may be (B, 1, L, L) and come "
                "with a whole prompt: with a cache that is shorter than the text its columns would not be the caller's. "
                "Give a 2-D mask, or pass the whole prompt in one call"
            )
        mask = mask[..., :length, :length]  # a cache of fixed size holds room for more
    return said_by(mask, real)


def refuse_packed(family: Family, pipeline: Pipeline) -> None:
    """What cannot be done for rows that hold several documents, or come with a mask of the caller's own."""
    says = "packed rows (position_ids that start again, or a 4-D attention_mask that keeps documents apart)"
    heard = [s for s in pipeline.needs if isinstance(s, (AttentionReceived, TextAttention)) and s.part == "llm"]
    if heard:
        raise ValueError(
            f"{says} and {heard[0]}: attention received inside the language model is only known for rows of one document; "
            "give each document a row of its own, or use a method that ranks before the language model or by its last query"
        )
    kind = implementation(family.decoder.config)
    if kind not in ("sdpa", "eager"):
        raise ValueError(
            f"{says} on attention {kind!r}, whose kernels are told about documents in ways that do not survive dropping; "
            "load the model with attn_implementation='sdpa', or give each document a row of its own"
        )
    if family.attends_both_ways:
        raise ValueError(
            f"{says} in a {family.model.config.model_type} model, some of whose tokens attend both ways; give each document "
            "a row of its own"
        )
    if "linear_attention" in family.decoder_layers:
        raise ValueError(
            f"{says} in a {family.model.config.model_type} model, whose recurrent layers carry one document into the next; "
            "give each document a row of its own"
        )
