"""PromptDistill: a whole decoder given by its weights, every token of the prompt but the last a token of the picture."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from golden_cases import llama
from golden_cases.common import make
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.adapters.hooks.decoder_pass import DecoderPass
from tokenreduce.methods.promptdistill import PromptDistill


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    params.one_of("function", ("tiny_llama",), "tiny_llama")
    layers, counts = tuple(params["selection_layers"]), tuple(params["top_k"])
    pool = params.one_of("pooling", {0: None, 5: "flat5"}, 5)
    ends = inputs["prompt_end"].tolist()
    if len(set(ends)) > 1:
        raise ValueError(f"input prompt_end={ends}; this driver honours: prompts that end in the same column")
    end, ignored = ends[0], [i for i, z in enumerate(layers) if z == len(inputs["w_q"]) - 1]
    for i in ignored:  # a selection at the last layer is ignored
        layers, counts = layers[:i], counts[:i]
    truncate = min(params["cache_truncation"], len(layers))
    counts = tuple(min(count, end) for count in counts)
    method = make(
        PromptDistill, params, keep=counts[-1], layers=layers, stage_keep=counts[:-1], pool=pool, truncate=truncate
    )
    heard = []
    note = DecoderPass.capture

    def capture(self: Any, signal: Any, value: Tensor, *more: Any) -> None:
        heard.append(value)
        note(self, signal, value, *more)

    with mock.patch.object(DecoderPass, "capture", capture):
        ran = llama.run(inputs, params, method, [slice(0, end)] * len(ends), prompt_length=[end + 1] * len(ends))
    last = layers[-1] + 1
    found = {f"selection_logits_stage{i}": value for i, value in enumerate(heard)}
    found |= {"kept_final": ran.columns(last), "hidden": ran.last(last), "cache_len": ran.held}
    if ran.decoded is not None:
        found |= {"decode_hidden": ran.decoded, "decode_position": ran.ids}
    return {name: value.to(torch.long) if name == "cache_len" else value for name, value in found.items()}
