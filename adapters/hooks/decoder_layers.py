"""Hooks on single decoder layers: hand each its own tokens, positions and mask, and add what it is owed afterwards."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.hooks.decoder_signals import DecoderSignals
from tokenreduce.adapters.upstream.decoder import ROTARY, positional_names
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
        names = positional_names(type(layer).forward)
        kwargs = {**kwargs, **dict(zip(names, args, strict=False))}
        reduced: DecoderPass = kwargs.pop(KEY)
        hidden = kwargs[names[0]]
        streams = hidden.shape[0] if hidden.ndim == 4 else 0
        if streams:  # several states of every token: side by side they are its features
            hidden = hidden.movedim(0, 2).flatten(2)
        if reduced.groups and self.index in reduced.pipeline.layers("llm"):
            self.signals.listen_ahead(reduced, self.index, layer, hidden, kwargs)
            hidden = reduced.shorten(self.index, hidden)
        if reduced.differs(self.index):
            own = {"attention_mask": reduced.masks.mask(self.index, hidden), "position_ids": None}
            if kwargs.get(ROTARY) is not None:  # some layers are given none
                own[ROTARY] = reduced.positions.embeddings(self.index, kwargs[ROTARY], hidden)
            for name, value in kwargs.items():
                if isinstance(value, Tensor) and name not in (names[0], *own):
                    own[name] = reduced.positions.carried(self.index, value)
            kwargs |= own
        kwargs[names[0]] = hidden.unflatten(2, (streams, -1)).movedim(2, 0) if streams else hidden
        self.current = reduced if reduced.beside else None
        return (*(kwargs.pop(name) for name in names[: len(args)]), *args[len(names) :]), kwargs

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
