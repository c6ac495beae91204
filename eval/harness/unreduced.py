"""What a prompt costs on a model that is not wrapped, in the terms of a wrapped one's report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tokenreduce.unreduced import cache_bytes, pictured, prefill_flops


class FirstPass:
    """What the first pass of a bare model tells: how many rows its decoder had, and the bytes of the cache after it.

    ``columns``: of the prompts with unscaled pictures, whose cache would be ``kv_bytes_unreduced``; None for those that ran.
    """

    def __init__(self, columns: int | None = None) -> None:
        self.rows = 0
        self.columns = columns
        self.kv_bytes: int | None = None
        self.kv_bytes_unreduced: int | None = None

    def attach(self, model: Any) -> list[Any]:
        decoder = model.get_decoder().register_forward_pre_hook(self.enter, with_kwargs=True)
        return [decoder, model.register_forward_hook(self.leave)]

    def enter(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("inputs_embeds", args[0] if args else None)
        self.rows = self.rows or (0 if given is None else len(given))

    def leave(self, model: Any, args: tuple[Any, ...], output: Any) -> None:
        if self.kv_bytes is None:
            self.kv_bytes = cache_bytes(output)
            self.kv_bytes_unreduced = cache_bytes(output, self.columns) if self.columns else self.kv_bytes


def unreduced(
    model: Any, ids: Any, mask: Any, bare: FirstPass, whole: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The same numbers for a bare model, counted from its prompts ``ids`` (B, L) and ``mask`` (B, L), and its first pass.

    ``whole``: the inputs before their pictures were scaled down; None where they were not. Tokens are placeholders here;
    where a family also puts newline tokens into these, they count, which no method reduces.
    """
    if ids is None:
        return []
    repeat = max(bare.rows // len(ids), 1)  # beams, or answers asked for
    kv, kv_whole = ((n or 0) / len(ids) for n in (bare.kv_bytes, bare.kv_bytes_unreduced))
    kept = _counted(model, ids, mask)
    before = kept if whole is None else _counted(model, whole["input_ids"], whole.get("attention_mask"))
    return [
        {
            "tokens_in": tokens_in,
            "tokens_kept": tokens,
            "equivalent_tokens": float(tokens),
            "flops": repeat * flops,
            "flops_unreduced": repeat * flops_unreduced,
            "kv_bytes": kv,
            "kv_bytes_unreduced": kv_whole,
            "method_ms": 0.0,
        }
        for (tokens, flops), (tokens_in, flops_unreduced) in zip(kept, before, strict=True)
    ]


def _counted(model: Any, ids: Any, mask: Any) -> list[tuple[int, int]]:
    """(placeholders, FLOPs of the decoder's prefill) of each prompt."""
    kinds = [getattr(model.config, f"{kind}_token_id", None) for kind in ("image", "video")]
    visual = torch.isin(ids, torch.tensor([k for k in kinds if k is not None], device=ids.device)).sum(1).tolist()
    lengths = [ids.shape[1]] * len(visual) if mask is None else mask.sum(1).tolist()
    return list(zip(visual, prefill_flops(model, lengths, pictured(model, ids))))
