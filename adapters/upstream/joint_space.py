"""The spaces that towers of transformers share with texts.

| seam | seen |
| --- | --- |
| CLIP: `vision_model.post_layernorm`, then `visual_projection` | 5.17 to 5.24 |
| SigLIP: `vision_model.post_layernorm`, then the pooling `vision_model.head` | 5.17 to 5.24 |
| `get_text_features(input_ids=)` returns the features as `pooler_output` | 5.17 to 5.24 |
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from tokenreduce.joint_space import JointSpace


def text_tower(model: Any, tokenizer: Any) -> JointSpace:
    """The space that the vision tower of a VLM shares with texts, by the whole CLIP or SigLIP that tower was taken from.

    Of SigLIP, whose pooling attends to all patches, a patch is pooled by itself. A text longer than the tower reads is cut
    into segments. Everything runs where the model is, in its dtype, without gradients.

    Args:
        model: a ``CLIPModel`` or ``SiglipModel``, of the same weights as the VLM's vision tower.
        tokenizer: its tokenizer, or its processor.

    Errors: ``ValueError`` for a model of another type.

    Example: ``space = tr.text_tower(CLIPModel.from_pretrained(name), CLIPTokenizer.from_pretrained(name))``
    """
    kinds: dict[str, tuple[Callable[[Any, Tensor], Tensor], Literal[1, -1]]] = {
        "clip": (_projected, -1),
        "siglip": (_pooled_alone, 1),
    }
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in kinds or not hasattr(model, "get_text_features"):
        raise ValueError(
            f"model is a {type(model).__name__} of type {kind!r}; allowed: a whole CLIPModel or SiglipModel, vision and text, of "
            "the weights that the vision tower of the VLM was taken from"
        )
    image, sign = kinds[kind]
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    config = model.config
    name = config.name_or_path or type(model).__name__
    return JointSpace(
        name,
        config.vision_config.hidden_size,
        partial(_of_rows, image, model),
        partial(_of_text, model, tokenizer),
        sign,
    )


@torch.no_grad()
def _of_rows(image: Callable[[Any, Tensor], Tensor], model: Any, rows: Tensor) -> Tensor:
    weight = model.vision_model.post_layernorm.weight
    normed = model.vision_model.post_layernorm(rows.to(weight.device, weight.dtype))
    return image(model, normed).to(rows.device)


def _projected(model: Any, rows: Tensor) -> Tensor:
    return model.visual_projection(rows)


def _pooled_alone(model: Any, rows: Tensor) -> Tensor:
    return model.vision_model.head(rows.reshape(-1, 1, rows.shape[-1])).view(*rows.shape[:-1], -1)


@torch.no_grad()
def _of_text(model: Any, tokenizer: Any, text: str) -> Tensor:
    longest, full = model.config.text_config.max_position_embeddings, model.config.model_type == "siglip"
    ids = tokenizer(text, truncation=False, verbose=False)["input_ids"]
    pieces = [ids[i : i + longest] for i in range(0, len(ids), longest)]
    if len(pieces) > 1 or full:  # CLIP pools where the text ends, SigLIP in its last column, whatever fills it up
        filling = (tokenizer.pad_token_id or 0) if full else 0
        pieces = [piece + [filling] * (longest - len(piece)) for piece in pieces]
    return model.get_text_features(input_ids=torch.tensor(pieces, device=model.device)).pooler_output
