"""Hooks on single decoder layers: hand each its own tokens, positions and mask, and add what it is owed afterwards."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.hooks.decoder_signals import DecoderSignals
from tokenreduce.adapters.upstream.decoder import ROTARY
from tokenreduce.per_thread import PerThread, nothing

#: name under which the pass rides in the decoder's keyword arguments, down to every layer and back through re-runs
KEY = "tokenreduce_pass"


class LayerHooks:
    """Hooks of decoder layer ``index``."""

    current = PerThread[DecoderPass | None](nothing)

    def __init__(self, index: int, signals: DecoderSignals) -> None:
        self.index = index
        self.signals = signals

    def enter(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if KEY not in kwargs:
            return None
        kwargs = dict(kwargs)
        reduced: DecoderPass = kwargs.pop(KEY)
        hidden = args[0] if args else kwargs["hidden_states"]
        if reduced.groups and self.index in reduced.pipeline.layers("llm"):
            self.signals.listen_ahead(reduced, self.index, layer, hidden, kwargs)
            hidden = reduced.shorten(self.index, hidden)
        if reduced.differs(self.index):
            kwargs["attention_mask"] = reduced.masks.mask(self.index, hidden)
            table = kwargs[ROTARY]
            kwargs[ROTARY] = reduced.positions.embeddings(self.index, table, hidden)
            kwargs["position_ids"] = None
        self.current = reduced if reduced.beside else None
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    def leave(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Add what the decoder itself would have added after this layer, had its tokens not become fewer."""
        reduced, self.current = self.current, None
        if reduced is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        beside = reduced.beside[reduced.packings.start(self.index)]
        share = beside[..., self.index * hidden.shape[-1] : (self.index + 1) * hidden.shape[-1]]
        if not share.shape[-1]:
            return None
        hidden = hidden + share.to(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
