"""Attention statistics of decoder layers, heard where a method asked for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapters.attention_functions import Probe
from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.adapters.hooks.decoder_statistics import Statistic, attended, multiply_adds, statistic
from tokenreduce.adapters.hooks.marked_attention import Heard
from tokenreduce.adapters.upstream.cache import NAMES, cache_argument, cached_keys
from tokenreduce.adapters.upstream.decoder import (
    HIDDEN,
    ROTARY,
    attention_norm,
    layer_type,
    makes_keys_anew,
    rotated_back,
)
from tokenreduce.flops import products
from tokenreduce.pipeline import Pipeline
from tokenreduce.signals import DecoderKeys, LastQueryAttention, Text


class DecoderSignals:
    """Captures attention statistics of single layers while a prompt that holds images runs."""

    def __init__(self, family: Family, pipeline: Pipeline, current: Callable[[], DecoderPass | None]) -> None:
        """``current`` tells the pass that is under way."""
        self.family = family
        self.current = current
        self.wanted: dict[int, list[Statistic | DecoderKeys]] = {}
        self.ahead: dict[int, list[LastQueryAttention]] = {}
        for signal in pipeline.listens:
            if isinstance(signal, LastQueryAttention) and signal.ahead:
                self.ahead.setdefault(signal.layer, []).append(signal)
                attention_norm(family.decoder.layers[signal.layer])  # known, or refused before anything is attached
                continue
            heard = signal.of if isinstance(signal, Text) else signal
            if isinstance(heard, DecoderKeys) and makes_keys_anew(family.decoder_attention(heard.layer)):
                raise ValueError(
                    f"{heard} is asked for, but decoder layer {heard.layer} of this {family.model.config.model_type} model "
                    "makes its keys anew from compressed rows (latent attention), and they cannot be turned back to a common "
                    "start; allowed here: methods that look at attention or features instead"
                )
            if (
                isinstance(heard, (Statistic, DecoderKeys))
                and heard.part == "llm"
                and heard not in self.wanted.get(heard.layer, ())
            ):
                self.wanted.setdefault(heard.layer, []).append(heard)
        self.decoding: dict[int, list[LastQueryAttention]] = {}  # what is heard of the new token of a decoding step
        for need in pipeline.decodes[1].needs if pipeline.decodes is not None else ():
            assert isinstance(need, LastQueryAttention)
            self.decoding.setdefault(need.layer, []).append(need)
        self.probes: dict[int, Probe] = {}

    def attach(self, handles: list[Any]) -> None:
        for layer in {*self.wanted, *self.ahead, *self.decoding}:
            self.probes[layer] = Probe(self.family.decoder_attention(layer), self.listen)
            handles.append(self.probes[layer])

    @torch.no_grad()
    def listen(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, scale: float, cuts: Tensor | None
    ) -> None:
        reduced = self.current()
        if reduced is None or reduced.passive or not (reduced.groups or reduced.reading):
            return
        layer = next(i for i, probe in self.probes.items() if probe.front.module is module)
        with reduced.pipeline.stopwatch(query.device):
            heard = Heard(reduced, layer, module, query, key, scale, self.family.rotates(layer))
            if reduced.reading is not None:
                for asked in self.decoding.get(layer, ()):
                    row = attended(heard, softmax=asked.softmax)
                    reduced.reading.hear(asked, row, layer, row.numel() * query.shape[1] * query.shape[3])
                return
            for signal in self.wanted.get(layer, ()):
                if isinstance(signal, DecoderKeys):
                    keys = self._since_the_beginning(module, heard.key, reduced, layer)[:, :, heard.past :]
                    reduced.capture(signal, keys.transpose(1, 2).flatten(2), layer, 0)
                else:
                    reduced.capture(signal, statistic(signal, heard), layer, multiply_adds(signal, heard))

    def _since_the_beginning(self, module: nn.Module, key: Tensor, reduced: DecoderPass, layer: int) -> Tensor:
        """``key`` (B, H, past + W, d) with positions that count from the first token of the text, whatever padding precedes it.

        Attention only knows distances, and the models count padding in ``forward`` and not in ``generate``.
        """
        first = reduced.positions.first(layer)
        if first is None or not self.family.rotates(layer):
            return key
        masks, renumbered = reduced.masks, reduced.positions.shift[layer] is not None
        before = torch.full_like(first, masks.past[layer] if renumbered else reduced.offset)
        past = masks.past_real[layer]
        if past is not None:
            before = before - (~past).sum(dim=1, keepdim=True)
        return rotated_back(module, self.family.decoder, key, first - before, layer_type(masks.config, layer))

    @torch.no_grad()
    def listen_ahead(
        self, reduced: DecoderPass, layer: int, module: Any, hidden: Tensor, kwargs: dict[str, Any]
    ) -> None:
        """Let the attention of ``layer``, about to be shortened, make its queries and keys of all that enters it, and
        nothing else: what it would attend to, had nothing been dropped.
        """
        if layer not in self.ahead or reduced.passive or reduced.decided("llm", layer):
            return
        probe, past = self.probes[layer], reduced.masks.past[layer]

        def told(attention: nn.Module, query: Tensor, key: Tensor, *args: Any) -> None:
            scale = args[1]
            if past:
                held = cached_keys(reduced.cache, layer, past)
                if held.shape[1::2] != key.shape[1::2]:
                    raise ValueError(
                        f"the cache of decoder layer {layer} holds what keys are made of, not the keys of earlier turns; allowed "
                        "with a method that looks ahead in this model: all turns in one prompt"
                    )
                key = torch.cat([held.to(key), key], dim=2)
            heard = Heard(reduced, layer, attention, query, key, scale)
            made = sum(heard.packing.counts) * products(attention)
            for signal in self.ahead[layer]:
                reduced.capture(signal, statistic(signal, heard), layer, made + multiply_adds(signal, heard))
                made = 0  # once for all signals

        kwargs = {name: x for name, x in kwargs.items() if name not in (*NAMES, HIDDEN, "use_cache")}
        kwargs["attention_mask"] = None
        if kwargs.get(ROTARY) is not None:
            kwargs[ROTARY] = reduced.positions.embeddings(layer, kwargs[ROTARY], hidden)
        with reduced.pipeline.stopwatch(hidden.device), probe.front.only_telling(told):
            attention = probe.front.module
            kwargs[cache_argument(type(attention).forward)] = None
            attention(hidden_states=attention_norm(module)(hidden), **kwargs)
