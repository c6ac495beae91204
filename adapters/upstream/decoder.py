"""Inside a decoder of transformers: kinds of layers, rotary tables.

| seam | seen |
| --- | --- |
| `config.layer_types[i]` names the mask of layer i; without it, `config.sliding_window` tells | 5.17 to 5.24 |
| rows of the rotary table reach every layer as `position_embeddings`: a pair, or one complex tensor (Llama 4) | 5.17 to 5.24 |
| `get_decoder()` is what holds the layers, or a causal language model whose `model` does (Llama 4) | 5.17 to 5.24 |
| a layer takes its hidden states first; Gemma 3n and 4 hand it more by position | 5.17 to 5.24 |
| a layer calls its attention `self_attn`, or, where it is a single mixer, `mixer` (Nemotron-H) | 5.17 to 5.24 |
| an attention ends in `o_proj`, in LFM2 `out_proj`; queries, keys and values of hidden states by `q_proj`, ... | 5.17 to 5.24 |
| a layer's `mlp`, or `feed_forward` (Llama 4, LFM2), that needs hidden states alone works token by token | 5.17 to 5.24 |
| Qwen3-VL hands its decoder `deepstack_visual_embeds`, added behind layers 0, 1, ..., and `visual_pos_masks` | 5.17 to 5.24 |
| Granite 4 Vision hands it zeros for pictures, `deepstack_features` by layer in front of which they join, `vision_mask` | 5.24 |
| `attn_logit_softcapping` of an attention module (Gemma 2) | 5.17 to 5.24 |
| `apply_rotary_pos_emb(q, k, cos, sin)` of a decoder's own file, where ids have one axis | 5.17 to 5.24 |
| layers that reuse keys of earlier ones: `config.kv_sharing_modes` | 5.18 to 5.24 |
| the same: the last `config.num_kv_shared_layers`, each of the last layer of its kind before them | 5.17 to 5.24 |
| `logits_to_keep` of a decoder with `_maybe_slice_kv_shared_inputs`: layers that reuse keys run on those columns alone | 5.24 |
| a row in front of `config.rope_parameters["mrope_section"]`, three without, rows of ids tells documents apart | 5.17 to 5.24 |
| a file's `apply_rotary_pos_emb` takes queries and keys, in Gemma 3n and 4 one of them, then the table | 5.17 to 5.24 |
| `decoder.norm` follows the last layer; `embedding_norm` in LFM2, `norm_f` in Nemotron-H | 5.17 to 5.24 |
| a layer norms what enters its attention by `input_layernorm`, in LFM2 `operator_norm`, in Nemotron-H `norm` | 5.17 to 5.24 |
| a layer without any of these, but with norms behind attention and MLP, hands its input on as it is (EXAONE 4) | 5.17 to 5.24 |
| a layer with an `altup` has several states of every token and mixes them before that norm (Gemma 3n) | 5.17 to 5.24 |
| `decoder.rotary_emb(hidden, ids)`, with a third argument `layer_type` where layers differ (Gemma 3) | 5.17 to 5.24 |
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenreduce.adapters.upstream.seams import seam_changed

ROTARY = "position_embeddings"
HIDDEN = "hidden_states"
COLUMNS_ASKED_FOR = "logits_to_keep"
ATTENTION = ("self_attn", "mixer")
RECURRENT = ("linear_attention", "conv")  # kinds of layers that keep a state instead of keys
TOKENWISE = ("moe", "mlp")  # kinds of layers that mix no tokens, and keep nothing
OUTPUTS = ("o_proj", "out_proj")
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
MLPS = ("mlp", "feed_forward")
NORMS_BEHIND = ("post_attention_layernorm", "post_feedforward_layernorm")
ATTENTION_NORMS = ("input_layernorm", "operator_norm", "norm")
FINAL_NORMS = ("norm", "embedding_norm", "norm_f")
AXES = ("time", "height", "width")


class DeepStack(NamedTuple):
    """``features`` (N, D) each, added to the N visual tokens at ``places`` (B, L) bool in front of ``layers``, ascending.

    ``alone``: nothing else of a picture enters the decoder, where it is zero.
    """

    layers: tuple[int, ...]
    features: list[Tensor]
    places: Tensor
    alone: bool


def deep_stack(arguments: Mapping[str, Any]) -> DeepStack | None:
    """What a call of a decoder is to add to its visual tokens in front of some layers; None for nothing."""
    if features := arguments.get("deepstack_visual_embeds"):
        behind = tuple(range(1, len(features) + 1))
        return DeepStack(behind, list(features), arguments["visual_pos_masks"], alone=False)
    if by_layer := arguments.get("deepstack_features"):
        layers = tuple(sorted(by_layer))
        return DeepStack(layers, [by_layer[i] for i in layers], arguments["vision_mask"].squeeze(-1), alone=True)
    return None


def put_deep_stack(arguments: dict[str, Any], stack: DeepStack | None) -> None:
    """Replace what ``deep_stack`` finds; None takes it out."""
    names = ("deepstack_visual_embeds", "visual_pos_masks", "deepstack_features", "vision_mask")
    for name in names:
        arguments.pop(name, None)
    if stack is not None and stack.alone:
        own: tuple[Any, Any] = (dict(zip(stack.layers, stack.features)), stack.places.unsqueeze(-1))
        arguments.update(zip(names[2:], own))
    elif stack is not None:
        arguments.update(zip(names[:2], (stack.features, stack.places)))


def layer_type(config: Any, layer: int) -> str:
    """The kind of decoder layer ``layer``: ``full_attention``, ``sliding_attention``, ``linear_attention``, ..."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return kinds[layer]
    return "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"


def layers_holder(model: Any) -> Any:
    """The module that holds the decoder layers of ``model``; where there is none, what it says is its decoder."""
    decoder = model.get_decoder()
    return decoder if hasattr(decoder, "layers") else getattr(decoder, "model", decoder)


def attention_of(layer: Any) -> Any:
    """The attention of a decoder ``layer``; None where it has none of a known name."""
    return next((found for name in ATTENTION if (found := getattr(layer, name, None)) is not None), None)


def output_projection(attention: Any) -> Any:
    """The module through which an ``attention`` hands on what its heads give, (B, L, channels of all heads)."""
    return _named(attention, OUTPUTS, f"the output projection of a {type(attention).__name__}")


def token_wise_modules(layer: Any, attention: Any) -> list[Any]:
    """Modules of a decoder ``layer`` that are given hidden states (B, L, D) alone and work on every token by itself."""
    found = [getattr(attention, name, None) for name in PROJECTIONS] + [getattr(layer, name, None) for name in MLPS]
    return [module for module in found if module is not None and _needed(module.forward) == 1]


def _needed(function: Callable[..., Any]) -> int:
    """Arguments that a ``function`` cannot be called without."""
    each = inspect.signature(function).parameters.values()
    return sum(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in each)


@cache
def positional_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """What the ``forward`` of a class of layers takes by position, hidden states first."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD) or (HIDDEN,)


def holders(config: Any) -> list[int]:
    """Per layer, the one whose keys and values it attends to: itself, or an earlier one of its kind."""
    depth = config.num_hidden_layers
    modes = getattr(config, "kv_sharing_modes", None)
    if not modes:
        first = depth - (getattr(config, "num_kv_shared_layers", None) or 0)
        modes = [None] * first + ["reuse"] * (depth - first)
    held, last = [], dict[str, int]()
    for layer, mode in enumerate(modes):
        kind = layer_type(config, layer)
        if mode != "reuse":
            last[kind] = layer
        held.append(last[kind])
    return held


def reads_last_alone(decoder: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether a call of ``decoder`` lets its layers that reuse keys work on the last column alone."""
    asked = arguments.get(COLUMNS_ASKED_FOR)
    return isinstance(asked, int) and asked == 1 and hasattr(decoder, "_maybe_slice_kv_shared_inputs")


def documents_row(config: Any, positions: Tensor) -> Tensor | None:
    """(1 | B, L) the row in front of the axes of position ids (A, 1 | B, L), which tells documents apart; None for none."""
    if positions.ndim < 3:
        return None
    axes = (getattr(config, "rope_parameters", None) or {}).get("mrope_section") or AXES
    return positions[0] if len(positions) == len(axes) + 1 else None


def softcap_of(attention: Any) -> float | None:
    """The soft cap of the logits of an ``attention`` module; None for none."""
    return getattr(attention, "attn_logit_softcapping", None)


def makes_keys_anew(attention: Any) -> bool:
    """Whether an ``attention`` module is latent: its keys are made of narrower rows, and only some channels are rotated."""
    return hasattr(attention, "kv_b_proj")


def attention_norm(layer: Any) -> Any:
    """The norm through which a decoder ``layer`` hands its input to its attention.

    Errors: ``ValueError`` for a layer that mixes several states before; ``UpstreamChanged`` for one without a known norm.
    """
    if hasattr(layer, "altup"):
        raise ValueError(
            f"a {type(layer).__name__} mixes several states of every token before its attention, which therefore cannot be "
            "asked ahead; use a method that listens to the layer before"
        )
    if all(hasattr(layer, name) for name in NORMS_BEHIND) and not any(hasattr(layer, name) for name in ATTENTION_NORMS):
        return nn.Identity()
    return _named(layer, ATTENTION_NORMS, f"the norm before the attention of a {type(layer).__name__}")


def _named(module: Any, known: tuple[str, ...], what: str) -> Any:
    found = next((own for name in known if (own := getattr(module, name, None)) is not None), None)
    if found is None:
        names = ", ".join(name for name, _ in module.named_children())
        raise seam_changed("transformers", what, " or ".join(known), names)
    return found


def rotary_embedding(decoder: Any, hidden: Tensor, ids: Tensor, kind: str) -> Tensor | tuple[Tensor, ...]:
    """The rotary table of ``ids`` for layers of type ``kind``: cosines and sines, or one complex tensor."""
    embed = decoder.rotary_emb
    by_kind = "layer_type" in inspect.signature(embed.forward).parameters
    return embed(hidden, ids, kind) if by_kind else embed(hidden, ids)


def final_norm(decoder: Any) -> Any:
    """The norm that follows the last layer of ``decoder``."""
    return _named(decoder, FINAL_NORMS, f"the norm behind the last layer of a {type(decoder).__name__}")


def rotated_back(attention: Any, decoder: Any, keys: Tensor, ids: Tensor, kind: str) -> Tensor:
    """``keys`` (B, H, N, d) of a layer of type ``kind`` as they were, had every token come ``ids`` (B, 1) places sooner."""
    table = rotary_embedding(decoder, keys, ids, kind)
    if isinstance(table, Tensor):  # neighbouring channels are a complex number
        pairs = torch.view_as_complex(keys.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * table.conj()[:, None]).flatten(-2).type_as(keys)
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    cos, sin = table
    if [*inspect.signature(rotate).parameters][2] == "sin":
        return rotate(keys, cos, -sin)
    return rotate(keys, keys, cos, -sin)[1]


def rotated_ones(decoder: Any, like: Tensor, ids: Tensor, kind: str, width: int) -> Tensor:
    """(B, W, E) rows of length 1 whose dot products are the cosines of all-ones vectors of ``width``, rotated to ``ids``."""
    table = rotary_embedding(decoder, like, ids, kind)
    turned = torch.cat(table, dim=-1) if isinstance(table, tuple) else torch.view_as_real(table).flatten(-2)
    size = table[0].shape[-1] if isinstance(table, tuple) else turned.shape[-1]
    still = turned.new_full((*turned.shape[:-1], 1), (width - size) ** 0.5)  # channels that are not rotated
    return F.normalize(torch.cat([F.normalize(turned.float(), dim=-1) * size**0.5, still.float()], dim=-1), dim=-1)
