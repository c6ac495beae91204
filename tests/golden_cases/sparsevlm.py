"""SparseVLM: raters, scores, clusters, or a whole tiny Llama run through a wrapped LLaVA."""

from __future__ import annotations

from typing import Any

import torch
from golden_cases import llama as decoder
from golden_cases.common import visual_span
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.kernels.group_mean import group_mean
from tokenreduce.kernels.top_k import top_k
from tokenreduce.methods.sparsevlm import SparseVLM
from tokenreduce.text_raters import by_rank, clusters, raters, text_score
from tokenreduce.tokens import Rows


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    served = {"select_raters": rate, "cluster_and_merge": merge, "score_and_select": score, "tiny_llama": llama}
    return params.one_of("function", served, "tiny_llama")(inputs, params)


def rate(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    visual, text = inputs["visual"], inputs["text"]
    valid = torch.ones(text.shape[:2], dtype=torch.bool)
    given = text_score(visual, Rows(text, valid, torch.zeros_like(valid, dtype=torch.long)))
    return {"text_score": given[0], "raters": raters(given, valid)[0].nonzero()[:, 0]}


def merge(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    _, place = clusters(inputs["x"], params["clusters"])
    return {"merged": group_mean(inputs["x"].float(), place, params["clusters"])}


def score(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """(1, H, T, T) attention of the pruning layer: by a number, or by the rank of what raters see (the first release)."""
    attention, chosen = inputs["attn"].float(), inputs["raters"]
    image = visual_span(params, attention.shape[-1])
    seen = attention[0, :, image.stop + chosen, image].mean(dim=0)
    relevance = seen.mean(dim=0)
    found = {"relevance": relevance}
    if "keep" in params:
        k = min(params["keep"], len(relevance) - 1)
        found["keep_topk"] = top_k(relevance[None], k)[0].sort().values
    if "rank_scale" in params:
        rank = torch.linalg.matrix_rank(seen)
        n, line = len(relevance), (params["rank_scale"], params.get("rank_bias", 0))
        k = int(by_rank(rank[None], n, line, 1, n))
        found |= {"rank": rank, "keep_rank_rule": top_k(relevance[None], k)[0].sort().values}
    return found


def llama(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    """The whole language model, through prefill and one decode step."""
    first = params.one_of("version", ("1", "1_0", "1.0", "2", "2_0", "2.0"), "1").startswith("1")
    stages: dict[str, Any] = {"counts": tuple(params["keep_list"]), "layers": tuple(params["pruning_layers"])}
    if first:
        method = SparseVLM(**stages, output_order="reference", recycle=params.get("recycle", True))
    else:  # position ids stay, and the correction takes either sign
        method = SparseVLM(**stages, version=2, heads=params.get("selected_heads"), least=None)
    found = decoder.run(inputs, params, method, [visual_span(params, inputs["embeds"].shape[1])])
    return {
        "hidden": found.last(len(found.held) - 1),
        "cache_len": found.held,
        "decode_position": found.ids,
        "decode_hidden": found.decoded,
    }
