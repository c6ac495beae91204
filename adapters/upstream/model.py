"""How a multimodal model of transformers is called.

| seam | seen |
| --- | --- |
| `generate` encodes first and hands on `mm_encoder_outputs`, a dict of `image` and `video` | from 5.18 |
| names of pixel arguments | 5.17 to 5.24 |
| ids of special tokens stand in a configuration, or one inside it, as `*_token_id` or `*_token_index` | 5.17 to 5.24 |
| the blocks whose rows are the features: `vision_feature_layer`; in VipLLaVA `vision_feature_layers` before 5.23 | 5.17 to 5.24 |
| encoding methods return what joins the prompt as `pooler_output`, a tensor or one per picture | 5.17 to 5.24 |
| Qwen-VL: `get_rope_index(ids, mm_token_type_ids=, video_grid_thw=, second_per_grid_ts=)[0]`, (3, B, L) | 5.17 to 5.24 |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: methods by which continuous batching begins (5.17-5.24)
PAGED = ("generate_batch", "init_continuous_batching")
ENCODING_METHODS = ("get_image_features", "get_video_features")
OF_BLOCKS = (
    "deepstack_features"  # what towers of Qwen3-VL's line give beside their last rows, a tensor per block (5.17-5.24)
)
PIXELS = ("pixel_values", "pixel_values_images", "pixel_values_videos", "image_hidden_states")


def encoded_ahead(arguments: Mapping[str, Any]) -> list[Any]:
    """Image and video features that were encoded before the forward pass."""
    encoded = arguments.get("mm_encoder_outputs") or {}
    return [x for x in (encoded.get("image"), encoded.get("video")) if x is not None]


def pixels_of(arguments: Mapping[str, Any]) -> list[Any]:
    """Pixels among the ``arguments`` of a call."""
    return [arguments[name] for name in PIXELS if arguments.get(name) is not None]


def feature_layer(config: Any) -> Any:
    """Of which hidden states of the tower the features are made: an index, or several."""
    name = "vision_feature_layer" if hasattr(config, "vision_feature_layer") else "vision_feature_layers"
    return getattr(config, name)


def prompt_shape(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of the prompt that ``generate(*args, **kwargs)`` is given; None where it is given none."""
    given = [*args[:1], *(kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds"))]
    found = next((x for x in given if x is not None), None)
    return None if found is None else (found.shape[0], found.shape[1])


def prompt_ids(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """(B, L) long, the prompt that ``generate`` or ``forward`` is given as ids; None where it is given none."""
    given = [*args[:1], *(kwargs.get(name) for name in ("inputs", "input_ids"))]
    return next((x for x in given if isinstance(x, Tensor) and x.ndim == 2 and not x.is_floating_point()), None)


def feature_rows(output: Any) -> Tensor | None:
    """(R, D), the features that an encoding method returned, row by row as they join the prompt; None for another form."""
    features = getattr(output, "pooler_output", None)
    pieces = [features] if isinstance(features, Tensor) else features or []
    return torch.cat([piece.flatten(0, -2) for piece in pieces]) if len(pieces) else None


def special_ids(model: Any) -> list[int]:
    """The ids that the configurations of ``model`` name: beginning, end, padding, placeholders and what surrounds them."""
    found: set[int] = set()
    todo = [model.config, getattr(model, "generation_config", None)]
    while todo:
        for name, value in vars(todo.pop() or object).items():
            if hasattr(value, "to_dict"):
                todo.append(value)
            elif name.endswith(("_token_id", "_token_index")):
                found |= {i for i in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(i, int)}
    return sorted(i for i in found if 0 <= i < model.get_input_embeddings().num_embeddings)


def video_positions(core: Any, arguments: Mapping[str, Any], grid: Tensor, columns: int, text: int = 0) -> Tensor:
    """(3, 1, L) position ids, from 0, of the ``columns`` of a video of ``grid`` (3,) and ``text`` tokens behind it.

    ``arguments`` are those with which the model is shown frames of the same rate.
    """
    kinds = torch.tensor([[2] * columns + [0] * text])
    rate = {name: arguments[name] for name in ("second_per_grid_ts",) if arguments.get(name) is not None}
    return core.get_rope_index(kinds, mm_token_type_ids=kinds, video_grid_thw=grid[None], **rate)[0]
