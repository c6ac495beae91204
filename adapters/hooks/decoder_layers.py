"""Hooks on single decoder layers: hand each its own tokens, positions and mask, and what joins them there."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokenreduce.adapters.hooks import deepstack
from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.hooks.decoder_signals import DecoderSignals
from tokenreduce.adapters.hooks.passing_by import PassingBy, joins_again, taken_in
from tokenreduce.adapters.upstream.decoder import ROTARY, positional_names
from tokenreduce.per_thread import PerThread, nothing

#: name under which the pass rides in the decoder's keyword arguments, down to every layer and back through re-runs
KEY = "tokenreduce_pass"
MASK = "attention_mask"


class LayerHooks:
    """Hooks of decoder layer ``index``."""

    passing = PerThread[PassingBy | None](nothing)  # of the layer under way

    def __init__(self, index: int, signals: DecoderSignals) -> None:
        self.index = index
        self.signals = signals

    def attach(self, layer: nn.Module) -> list[Any]:
        return [
            layer.register_forward_pre_hook(self.enter, with_kwargs=True),
            layer.register_forward_hook(self.leave, prepend=True, always_call=True),
        ]

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
        hidden = deepstack.joined(reduced, self.index, hidden)
        self.passing = None
        if reduced.groups and joins_again(reduced.pipeline, self.index):
            hidden, self.passing = taken_in(reduced, self.index, hidden)
        elif reduced.groups and self.index in reduced.pipeline.layers("llm"):
            self.signals.listen_ahead(reduced, self.index, layer, hidden, kwargs)
            hidden = reduced.shorten(self.index, hidden)
        if reduced.differs(self.index):
            own = {MASK: reduced.masks.mask(self.index, hidden), "position_ids": None}
            if kwargs.get(ROTARY) is not None:  # some layers are given none
                own[ROTARY] = reduced.positions.embeddings(self.index, kwargs[ROTARY], hidden)
            for name, value in kwargs.items():
                if isinstance(value, Tensor) and name not in (names[0], *own):
                    own[name] = reduced.positions.carried(self.index, value)
            kwargs |= own
        if reduced.reading is not None:
            self.read(reduced, hidden, kwargs)
        kwargs[names[0]] = hidden.unflatten(2, (streams, -1)).movedim(2, 0) if streams else hidden
        return (*(kwargs.pop(name) for name in names[: len(args)]), *args[len(names) :]), kwargs

    def leave(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Hook behind the layer; ``output`` is None where it raised."""
        passing, self.passing = self.passing, None
        if passing is None or output is None:
            return None
        whole = passing.joined(output[0] if isinstance(output, tuple) else output)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    def read(self, reduced: DecoderPass, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """Let the new token of each row read what the method chooses: by fewer keys, or else by the layer's mask."""
        reading = reduced.reading
        assert reading is not None
        with reduced.pipeline.stopwatch(hidden.device):
            if self.index == reading.layer:
                reading.choose()
            unread = reading.unread(self.index)
            holder, mask = reduced.masks.holders[self.index], kwargs.get(MASK)
            if unread is not None and not reading.gathers(reduced.cache, holder, self.index, mask):
                kwargs[MASK] = reduced.masks.without(self.index, hidden, unread)
