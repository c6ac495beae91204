"""DyVTE: a whole decoder given by its weights, with its gates, and one image in the prompt."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from golden_cases import llama
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.methods import dyvte
from tokenreduce.tokens import Rows
from tokenreduce.weights import Base, Header, Weights


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    params.one_of("function", ("tiny_llama_exit",), "tiny_llama_exit")
    embeds, first, second = inputs["embeds"], inputs["gate_w1"], inputs["gate_w2"]
    depth, length = len(first), embeds.shape[1]
    params.agree(gate_hidden=first.shape[1])
    start = params["image_start"]
    image = slice(start, start + params["image_len"])
    params.agree(text_len=length - image.stop)
    gates = dyvte.Gates(depth, embeds.shape[-1], first.shape[1])
    gates.load_state_dict(
        {f"gates.{i}.{part}.weight": x[i] for part, x in ((0, first), (2, second)) for i in range(depth)}
    )
    asked: list[tuple[Tensor, Tensor]] = []
    answer = dyvte.gate_logits

    def noted(gate: Any, x: Tensor) -> Tensor:
        logits = answer(gate, x)
        asked.append((x, logits))
        return logits

    base = Base("", "", None, embeds.shape[-1], depth, None)
    weights = Weights.made(Header("dyvte", 1, base, {"hidden": first.shape[1]}, {}), gates)
    with mock.patch.object(dyvte, "gate_logits", noted):
        ran = llama.run(inputs, params, dyvte.DyVTE(weights=weights), [image])
    left = next((i for i in range(depth) if ran.columns(i).shape[1] < length), None)
    if left is None:  # the gate of the last layer, which no other follows, is asked in the release all the same
        text = ran.unnormed[:, image.stop :]
        noted(gates.gates[-1], dyvte.gate_input(Rows.of(list(text), text.device)))
    return {
        "gate_logits": torch.cat([logits for _, logits in asked]),
        "gate_features": torch.cat([x for x, _ in asked]),
        "exit_layer": torch.tensor(-1 if left is None else left - 1),
        "hidden": ran.last(depth - 1),
        "cache_len": ran.held.to(torch.long),
    }
