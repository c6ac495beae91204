"""Whether the decoder is what the hooks take it for; where it is not, an error instead of an answer that could be wrong."""

from __future__ import annotations

from typing import Any

from tokenreduce.adapters.hooks.coded_cache import CodedLayer
from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.hooks.kv_cache import physical_length
from tokenreduce.adapters.upstream.cache import NAMES, DynamicLayer, cache_argument, stray_cache
from tokenreduce.adapters.upstream.seams import seam_changed
from tokenreduce.groups import ImageGroup
from tokenreduce.pipeline import Pipeline, acts


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


def refuse_paged_cache(arguments: dict[str, Any]) -> None:
    """Continuous batching takes ids alone, no pictures, and lays prompts out in pages of a cache that is not shortened."""
    raise ValueError(
        "continuous batching (generate_batch) of a wrapped model: it takes prompts of text alone, and its paged cache holds all "
        "tokens of them; use model.generate, of batches or in a thread for each request (examples/serve_transformers.py), vLLM "
        "(docs/serving.md), or tr.unwrap the model first"
    )


def refuse_attentions(decoder: Any, kwargs: dict[str, Any]) -> None:
    """Attention maps of a shortened sequence do not have the caller's columns."""
    asked = kwargs.get("output_attentions")
    if asked or (asked is None and getattr(decoder.config, "output_attentions", False)):
        raise ValueError(
            "output_attentions=True, but attention maps of a shortened sequence have fewer rows and columns than the prompt; "
            "leave it out, wrap with output_length='reduced' to get them as they are, or unwrap the model first"
        )


def refuse_proposals(reduced: DecoderPass, prompt: int | None) -> None:
    """Tokens proposed to ``generate``, several at once, would each have to choose by what the one before it attended to, or
    find the cache as that one left it.
    """
    end = reduced.offset + reduced.visual.shape[1]
    if prompt is None or reduced.visual.shape[1] == 1 or end <= prompt:
        return
    layers = [] if reduced.cache is None else reduced.cache.layers
    if any(isinstance(layer, CodedLayer) and layer.due is not None for layer in layers):
        raise ValueError(
            "what is written is coded as it comes, but this call of generate runs several tokens of an answer at once, as "
            "assisted decoding and prompt lookup do; leave out assistant_model and prompt_lookup_num_tokens, or give the method "
            "of the cache residual=None, with which what is written stays exact"
        )
    if reduced.pipeline.decodes is None:
        return
    method = reduced.pipeline.decodes[0]
    if reduced.held_before or any(acts(method, group) for group in reduced.groups):
        raise ValueError(
            f"method={method.name!r} chooses what is read token by token, but this call of generate runs several tokens of an "
            "answer at once, as assisted decoding and prompt lookup do; leave out assistant_model and "
            "prompt_lookup_num_tokens, or leave out the stage 'decode', as cache_keep=1.0 does"
        )


def refuse_missing_cache(pipeline: Pipeline, groups: list[ImageGroup]) -> None:
    """What a cache step forgets after the prompt, ``generate`` without a cache would read again at every step."""
    for method, step in pipeline.steps:
        if step.stage == "decode" and any(acts(method, group) for group in groups):
            raise ValueError(
                f"use_cache=False, but method={method.name!r} chooses what new tokens read of the cache; leave use_cache=False "
                "out, or leave out the stage 'decode', as cache_keep=1.0 does"
            )
        if step.stage == "cache" and (step.codec is None or any(acts(method, group) for group in groups)):
            raise ValueError(
                f"use_cache=False, but method={method.name!r} changes the cache after the prompt, and without one would write "
                "another answer; leave use_cache=False out, or leave out the cache stage, as trim_cache=False or truncate=0 does"
            )
