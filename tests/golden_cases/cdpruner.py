"""CDPruner: features of tiles, their rows and the text's in the space they share, to relevance and picks."""

from __future__ import annotations

from typing import Any

import torch
from golden_cases.vectors import Meta
from torch import Tensor

from tokenreduce.methods.cdpruner import picks, relevance
from tokenreduce.text_relevance import cosine_to_text
from tokenreduce.tokens import Rows

#: what relevance is rescaled among: everything in the vector, as tiles of one image, or each row by itself
SCOPES = {"whole batch": True, "batch": True, "image": False, "tile": False, "per image": False, "per tile": False}


def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]:
    features, rows, segments = inputs["features"], inputs["image_embeds"], inputs["text_embeds"]
    batch, n, _ = features.shape
    joined = params.one_of("normalise_scope", SCOPES, "whole batch")
    images, views = (1, batch) if joined else (batch, 1)
    segments = segments.expand(images, *segments.shape[-2:])
    text = Rows(segments, torch.ones(segments.shape[:2], dtype=torch.bool), torch.zeros(segments.shape[:2]).long())
    cosine = cosine_to_text(rows.reshape(images, views * n, -1), text, to="each")
    r = relevance(
        cosine * params.one_of("relevance_sign", (-1, 1), -1),
        text.valid.any(dim=1),
        theta=params.get("theta"),
        eps=params.get("eps", 1e-6),
    )
    view = torch.arange(views).repeat_interleave(n).expand(images, -1)
    order = picks(features.reshape(images, views * n, -1), r, views * params["keep"], view)
    order = order.view(batch, -1) % n
    keep = order.sort(dim=1).values
    return {
        "relevance": r.view(batch, n),
        "order": order,
        "keep_indices": keep,
        "keep_mask": torch.zeros(batch, n, dtype=torch.bool).scatter_(1, keep, True),
    }
