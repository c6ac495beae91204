"""The attention functions of transformers: how a module finds its own, and how it is given another.

| seam | seen |
| --- | --- |
| a module looks its function up at every call: `ALL_ATTENTION_FUNCTIONS`, `self.config._attn_implementation` | 5.17 to 5.24 |
| `config._attn_implementation_internal` holds that name; some models look for `flash` in it | 5.17 to 5.24 |
| the eager function of a model is `eager_attention_forward` of the module's own file | 5.17 to 5.24 |
| packed sequences in one call come with `cu_seq_lens_q`, the scale as `scaling` | 5.17 to 5.24 |
| blocks of a tower that packs are told borders as `cu_seqlens`, the longest segment as `max_seqlen` | 5.17 to 5.24 |
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from typing import Any

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface


def implementation(config: Any) -> str:
    """Name of the attention function that ``config`` chooses."""
    return config._attn_implementation or "eager"


def borders_of(arguments: Mapping[str, Any]) -> Any:
    """Borders (S + 1,) of sequences packed into one call of an attention function; None for a batch."""
    return arguments.get("cu_seq_lens_q")


def is_borders(name: str) -> bool:
    """Whether the argument ``name`` of a block holds borders (S + 1,) of the segments of a packed sequence."""
    return name == "cu_seqlens"


def is_longest(name: str) -> bool:
    """Whether it says how long the longest of them is."""
    return name == "max_seqlen"


def register(name: str, function: Callable[..., Any]) -> None:
    """Let configs choose ``function`` by ``name``."""
    AttentionInterface.register(name, function)


def choosing(config: Any, name: str) -> Any:
    """A copy of ``config`` that chooses the attention function ``name``."""
    chosen = copy.copy(config)
    chosen._attn_implementation_internal = name
    return chosen


def attention_function(module: Any, name: str) -> Callable[..., Any]:
    """The attention function ``name`` as ``module`` would find it."""
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
