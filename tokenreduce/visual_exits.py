"""After which decoder layer a picture is no longer needed: what DyVTE's gates are trained to say, found out by trying."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenreduce.exit_labels import can_leave
from tokenreduce.methods.dyvte import DyVTE
from tokenreduce.wrapping import wrapped


@torch.no_grad()
def exit_layers(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """(B,) long, for each sample of ``inputs`` the first layer (0-based) after which its visual tokens can leave.

    They can where more than 0.99 of the answer's tokens stay the most likely ones and its loss stays below 1.03 times that with
    all tokens (arXiv 2411.19628). The last layer where they can after none. The model runs once for each layer.

    Args:
        model: a vision-language model that is not wrapped.
        inputs: of one call of it, with ``labels`` (B, L), -100 outside of the answers.

    Errors: ``ValueError`` without an answer in every sample.
    """
    labels = inputs.get("labels")
    if not isinstance(labels, Tensor) or not bool((labels[:, 1:] != -100).any(dim=1).all()):
        raise ValueError(
            "inputs need labels, (B, L), with an answer in every sample; allowed: -100 outside of the answers"
        )
    before = model(**inputs).logits
    depth = model.get_decoder().config.num_hidden_layers
    found = torch.full((len(labels),), depth - 1, device=labels.device)
    for layer in reversed(range(depth - 1)):
        with wrapped(model, DyVTE(fixed_layer=layer)):
            found[can_leave(before, model(**inputs).logits, labels)] = layer
    return found
