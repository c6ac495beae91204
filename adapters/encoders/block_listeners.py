"""Hooks on the attention of vision blocks that tell keys, or queries and keys, or add a bias to what is attended to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tokenreduce.adapters.attention_functions import Bias, Listener, masked

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

# Hooks are partials of functions, not closures: a deep copy of the model then speaks to the copy of the listener.


def whole_output(heard: Callable[[Tensor], None], module: Any, args: Any, output: Tensor) -> None:
    heard(output)


def middle_third(heard: Callable[[Tensor], None], module: Any, args: Any, output: Tensor) -> None:
    heard(output.chunk(3, dim=-1)[1])


def before_values(heard: Callable[[Tensor], None], width: int, module: Any, args: Any, output: Tensor) -> None:
    heard(output[..., -2 * width : -width])


def fused_projection(heard: Callable[[Tensor], None], module: Any, args: tuple[Any, ...]) -> None:
    weight = module.qkv.weight.chunk(3)[1]
    bias = module.qkv.bias.chunk(3)[1] if module.qkv.bias is not None else getattr(module, "k_bias", None)
    heard(F.linear(args[0], weight, bias))


def in_projection(heard: Callable[[Tensor], None], module: Any, args: tuple[Any, ...]) -> None:
    width = module.embed_dim
    heard(F.linear(args[1], module.in_proj_weight[width : 2 * width], module.in_proj_bias[width : 2 * width]))


def fused_query_and_key(listener: Listener, attention: Any, module: Any, args: Any, output: Tensor) -> None:
    query, key, _ = output.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    listener(attention, attention.q_norm(query), attention.k_norm(key), None, attention.scale, None)


def query_and_key_ahead(listener: Listener, module: Any, args: tuple[Any, ...]) -> None:
    width = 2 * module.embed_dim
    both = F.linear(args[0], module.in_proj_weight[:width], module.in_proj_bias[:width])
    query, key = both.unflatten(-1, (2, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    listener(module, query, key, None, module.head_dim**-0.5, None)


def add_to_mask(bias: Bias, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
    row = bias()
    if row is None:
        return None
    return args, {**kwargs, "attn_mask": masked(kwargs.get("attn_mask"), row.to(args[0].dtype))}


def add_to_key_mask(bias: Bias, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
    """``key_padding_mask`` of nn.MultiheadAttention may be a float; its ``attn_mask`` would be (B * H, N, N)."""
    row = bias()
    return None if row is None else (args, {**kwargs, "key_padding_mask": row.to(args[0].dtype)})
