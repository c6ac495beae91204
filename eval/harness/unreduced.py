"""What a prompt costs on a model that is not wrapped, in the terms of a wrapped one's report."""

from __future__ import annotations

from typing import Any

import torch

from tokenreduce.unreduced import cache_bytes, prefill_flops


class FirstPass:
    """What the first pass of a bare model tells: how many rows its decoder had, and the bytes of the cache after it."""

    def __init__(self) -> None:
        self.rows = 0
        self.kv_bytes: int | None = None

    def attach(self, model: Any) -> list[Any]:
        decoder = model.get_decoder().register_forward_pre_hook(self.enter, with_kwargs=True)
        return [decoder, model.register_forward_hook(self.leave)]

    def enter(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("inputs_embeds", args[0] if args else None)
        self.rows = self.rows or (0 if given is None else len(given))

    def leave(self, model: Any, args: tuple[Any, ...], output: Any) -> None:
        if self.kv_bytes is None:
            self.kv_bytes = cache_bytes(output)


def unreduced(model: Any, ids: Any, mask: Any, bare: FirstPass) -> list[dict[str, Any]]:
    """The same numbers for a bare model, counted from its prompts ``ids`` (B, L) and ``mask`` (B, L), and its first pass.

    Tokens are placeholders here; where a family also puts newline tokens into these, they count, which no method reduces.
    """
    if ids is None:
        return []
    kinds = [getattr(model.config, f"{kind}_token_id", None) for kind in ("image", "video")]
    visual = torch.isin(ids, torch.tensor([k for k in kinds if k is not None], device=ids.device)).sum(1).tolist()
    lengths = [ids.shape[1]] * len(visual) if mask is None else mask.sum(1).tolist()
    repeat = max(bare.rows // len(ids), 1)  # beams, or answers asked for
    kv = (bare.kv_bytes or 0) / len(ids)
    rows = []
    for count, flops in zip(visual, prefill_flops(model, lengths)):
        tokens = {"tokens_in": count, "tokens_kept": count, "equivalent_tokens": float(count)}
        whole = repeat * flops
        bytes_held = {"kv_bytes": kv, "kv_bytes_unreduced": kv}
        rows.append({**tokens, "flops": whole, "flops_unreduced": whole, **bytes_held, "method_ms": 0.0})
    return rows
