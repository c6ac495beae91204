"""PyramidDrop: a whole decoder given by its weights, cut into stages."""

from __future__ import annotations

from typing import Any

from golden_cases import llama
from golden_cases.common import make
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.methods.pyramiddrop import PyramidDrop


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    params.one_of("function", ("tiny_llama",), "tiny_llama")
    starts, n, boundaries = params["image_start"], params["image_len"], tuple(params["layer_list"])
    policy = params.one_of("position_policy", {"compact": "renumber", "original": "keep"}, "compact")
    method = make(
        PyramidDrop, params, keep=None, layers=boundaries, ratios=tuple(params["ratio_list"]), positions=policy
    )
    ran = llama.run(inputs, params, method, [slice(start, start + n) for start in starts])
    found = {f"keep_sequence_stage{i}": ran.columns(b) for i, b in enumerate(boundaries)}
    found |= {"hidden": ran.last(boundaries[-1]), "cache_len": ran.held, "decode_position": ran.ids}
    return found if ran.decoded is None else {**found, "decode_hidden": ran.decoded}
