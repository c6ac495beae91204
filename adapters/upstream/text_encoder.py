"""Text encoders of encoder-decoders of transformers, and what their decoders are handed of them.

| seam | seen |
| --- | --- |
| `get_placeholder_mask(input_ids, ...)` of the base model is called before the encoder, also by `generate` | 5.17 to 5.24 |
| the encoder adds `embed_positions`, a table of learned positions, `offset` rows behind its beginning (BART) | 5.17 to 5.24 |
| the decoder takes `encoder_hidden_states` and a mask (B, N) over them, `encoder_attention_mask` | 5.17 to 5.24 |
| an `EncoderDecoderCache` holds the rows attended to across in its `cross_attention_cache` | 5.17 to 5.24 |
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

PLACEHOLDERS = "get_placeholder_mask"
STATES, MASK = "encoder_hidden_states", "encoder_attention_mask"


def position_table(encoder: Any) -> Any:
    """The module that gives each column of ``encoder`` its learned position."""
    return encoder.embed_positions


def learned_positions(table: Any, columns: Tensor) -> Tensor:
    """(B, W, D) the positions of ``columns`` (B, W) in ``table``."""
    return F.embedding(columns + table.offset, table.weight)


def cache_layers(cache: Any, across: tuple[int, ...]) -> Iterator[tuple[Any, bool]]:
    """The layers of ``cache``, each with whether it holds rows attended to across, as decoder layers ``across`` do."""
    if isinstance(cache, EncoderDecoderCache):
        yield from ((layer, False) for layer in cache.self_attention_cache.layers)
        yield from ((layer, True) for layer in cache.cross_attention_cache.layers)
    elif cache is not None:
        yield from ((layer, i in across) for i, layer in enumerate(cache.layers))
