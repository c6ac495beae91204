"""Rows that hold several documents, and masks of the caller's own: read, or refused where they cannot be kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks.decoder_inputs import uses_cache
from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.upstream.attention import implementation
from tokenreduce.adapters.upstream.decoder import documents_row
from tokenreduce.pipeline import Pipeline
from tokenreduce.signals import AttentionReceived, AttentionWalk, TextAttention


def note_documents(reduced: DecoderPass, family: Family, given: Any, kwargs: dict[str, Any], real: Tensor) -> None:
    """Note what the caller says of who sees whom, by the mask ``given`` to the model or by position ids.

    Args:
        kwargs: what the decoder is handed; ``real`` (B, L) bool, its columns that are no padding.

    Errors: ``ValueError`` where the method, the attention or the family cannot keep to it.
    """
    masks = reduced.masks
    if given is None:
        # as in transformers: with a cache, or with a mask, position ids tell nothing about documents
        if not uses_cache(family.decoder, kwargs):
            masks.documents = documents_of(family.decoder.config, kwargs.get("position_ids"))
    elif isinstance(given, Tensor) and given.ndim == 4:
        masks.documents, masks.given = checked_mask(given, real, reduced)
    if masks.caller_says:
        refuse_packed(family, reduced.pipeline)


def documents_of(config: Any, positions: Tensor | None) -> Tensor | None:
    """(B, L) long, the document of each column, as transformers reads it off position ids: one begins where they do not go on.

    None where every row holds a single one.
    """
    if positions is not None and positions.ndim == 3:
        positions = documents_row(config, positions)
    if positions is None:
        return None
    steps = positions.diff(dim=-1, prepend=positions[:, :1] - 1)
    documents = (steps != 1).cumsum(dim=-1)
    return documents if bool(documents[:, -1].any()) else None


def said_by(mask: Tensor, real: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What a caller's mask (B, 1, L, L) says beyond causality and padding ``real`` (B, L).

    Returns: documents (B, L) long, or else the whole mask (B, L, L) bool; None and None where it says nothing more.
    """
    seen = (mask if mask.dtype == torch.bool else mask >= 0)[:, 0].expand(len(real), -1, -1)
    length = seen.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=seen.device).tril()
    plain = causal & real[:, None, :]
    asked = real[:, :, None]
    if torch.equal(seen & asked, plain & asked):
        return None, None
    first = (seen & asked).to(torch.uint8).argmax(dim=2)  # a document begins with the first column that its rows see
    documents = (first.diff(dim=1, prepend=first[:, :1]) != 0).cumsum(dim=1)
    apart = plain & (documents[:, :, None] == documents[:, None, :])
    return (documents, None) if torch.equal(seen & asked, apart & asked) else (None, seen)


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
    of_all = (AttentionReceived, AttentionWalk, TextAttention)
    heard = [s for s in pipeline.listens if isinstance(s, of_all) and s.part == "llm"]
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
