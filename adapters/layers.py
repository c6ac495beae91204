"""Hooks on single decoder layers: hand each its own tokens, positions and mask; listen to the ones that are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tokenreduce.adapters.attention import Probe
from tokenreduce.adapters.plan import Plan, layer_type
from tokenreduce.kernels.attention_received import Over, attention_received
from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.signals import AttentionReceived, LastQueryAttention, Signal, TextAttention

if TYPE_CHECKING:
    from tokenreduce.adapters.door import DecoderDoor

#: name under which the plan rides in the decoder's keyword arguments, down to every layer and back through re-runs
KEY = "tokenreduce_plan"


class LayerDoor:
    """Hooks of decoder layer ``index``."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.plan: Plan | None = None

    def enter(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if KEY not in kwargs:
            return None
        kwargs = dict(kwargs)
        plan: Plan = kwargs.pop(KEY)
        hidden = args[0] if args else kwargs["hidden_states"]
        if plan.groups and self.index in plan.pipeline.layers("llm"):
            hidden = plan.shorten(self.index, hidden)
        if plan.differs(self.index):
            kwargs["attention_mask"] = plan.mask(self.index, hidden)
            table = kwargs["position_embeddings"]
            kwargs["position_embeddings"] = plan.position_embeddings(self.index, table, hidden)
            kwargs["position_ids"] = None
        self.plan = plan if plan.beside else None
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    def leave(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Add what the decoder itself would have added after this layer, had its tokens not become fewer."""
        plan, self.plan = self.plan, None
        if plan is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        beside = plan.beside[plan.start(self.index)]
        share = beside[..., self.index * hidden.shape[-1] : (self.index + 1) * hidden.shape[-1]]
        if not share.shape[-1]:
            return None
        hidden = hidden + share.to(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


class Listener:
    """Captures decoder signals while a prompt that holds images runs."""

    def __init__(self, door: DecoderDoor) -> None:
        self.door = door
        self.wanted: dict[int, list[Signal]] = {}
        for signal in door.pipeline.needs:
            if isinstance(signal, (AttentionReceived, LastQueryAttention, TextAttention)) and signal.part == "llm":
                self.wanted.setdefault(signal.layer, []).append(signal)

    def attach(self, handles: list[Any]) -> None:
        for layer in self.wanted:
            handles.append(Probe(self.door.family.decoder_attention(layer), self.listen))

    @torch.no_grad()
    def listen(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, scale: float, cuts: Tensor | None
    ) -> None:
        plan = self.door.plan
        if plan is None or plan.passive or not plan.groups:
            return
        layer = next(i for i in self.wanted if self.door.family.decoder_attention(i) is module)
        packing, past, visible = plan.packing(layer), plan.past(layer), plan.visible(layer)
        length = past + packing.width
        key = key[:, :, :length]  # a static cache holds room for more
        window = self._limit(plan, layer)
        softcap = getattr(module, "attn_logit_softcapping", None)
        with plan.pipeline.stopwatch(query.device):
            for signal in self.wanted[layer]:
                if isinstance(signal, LastQueryAttention):
                    last = packing.last_slot()
                    rows = query[:, :, -1:] if last is None else query.gather(2, _at(last, query))
                    seen = _window(visible, last, past, length, window, query)
                    value = attention_row(rows, key, scale, visible=seen, softcap=softcap)[:, 0]
                else:
                    rows, place, asked = query, self._upto(plan, layer, window), packing.valid
                    over: Over = "mean"
                    if isinstance(signal, TextAttention):
                        rows, slots, asked = _text_rows(query, plan, layer)
                        place = slots if place is None else place.gather(1, slots)
                        over = signal.over
                    value = attention_received(
                        rows,
                        key,
                        scale,
                        visible=visible,
                        softcap=softcap,
                        causal=True,
                        place=place if place is None else place + past,
                        window=window,
                        query_mask=asked,
                        over=over,
                    )
                plan.captured[signal] = (value[:, past:], packing)

    @staticmethod
    def _limit(plan: Plan, layer: int) -> int | None:
        """Tokens that a query of ``layer`` sees at most; None: no limit."""
        config = plan.decoder.config
        if layer_type(config, layer) != "sliding_attention" or plan.whole_block(layer):
            return None
        return config.sliding_window

    @staticmethod
    def _upto(plan: Plan, layer: int, window: int | None) -> Tensor | None:
        upto = plan.sees_up_to(layer)
        if upto is not None and window is not None and window < plan.past(layer) + plan.packing(layer).width:
            raise ValueError(
                f"attention received in decoder layer {layer} is asked for, a layer in which image tokens attend both ways "
                f"within a sliding window of {window} tokens; choose a layer of full attention (config.layer_types)"
            )
        return upto


def _text_rows(query: Tensor, plan: Plan, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """The queries (B, H, R, d) of real text, the slots (B, R) they come from, and which of them are real (B, R).

    R, the longest text of the batch, is known on the host; shorter rows are filled up with queries that do not count.
    """
    packing, visual = plan.packing(layer), plan.visual_counts[plan.start(layer)]
    longest = max(real - seen for real, seen in zip(packing.counts, visual, strict=True))
    text = ~plan.visual.to(query.device).gather(1, packing.order)
    if packing.valid is not None:
        text = text & packing.valid
    slots = text.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :longest]
    index = slots[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
    return query.gather(2, index), slots, text.gather(1, slots)


def _at(index: Tensor, x: Tensor) -> Tensor:
    return index[:, None, None, None].expand(-1, x.shape[1], 1, x.shape[3])


def _window(
    visible: Tensor | None, last: Tensor | None, past: int, length: int, window: int | None, like: Tensor
) -> Tensor | None:
    """(B, length) bool of the keys the last real query sees; None when it sees all."""
    column = torch.arange(length, device=like.device)
    if last is not None:
        upto = column <= (past + last)[:, None]
        visible = upto if visible is None else visible & upto
    if window is not None and window < length:
        end = torch.full((like.shape[0],), length - 1, device=like.device) if last is None else past + last
        near = column > (end - window)[:, None]
        visible = near if visible is None else visible & near
    return visible
