"""Transformer blocks of vision encoders: where attention and MLP sit, how keys are heard, how a bias for every key gets in.

One small class per kind of block; nothing of a block's forward is repeated here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from tokenreduce.adapters.attention_functions import Bias, KeyBias, Listener, Probe, masked

Handle = Any
ATTENTION = ("self_attn", "attention", "attn")  # names of a block's attention module in transformers
#: of the one whose input is the residual stream in between
NORM_BEFORE_MLP = ("layer_norm2", "norm2", "layernorm_after", "rms_norm2")
MLP = ("mlp", "ffn")
BEHIND_MLP = ("drop_path2", "layer_scale2", "ls2", "ls_2")  # what its output goes through, the last first
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Block:
    """A pre-norm block ``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``.

    Attributes:
        norm2: the module whose input is the residual stream between attention and MLP.
        attention: the attention module.
        mlp: the MLP; ``branch``, the last module that its output goes through before it joins the residual stream.
    """

    norm2_name: ClassVar[str] = "norm2"
    attention_name: ClassVar[str] = "attn"
    rope_by_head = False  #: whether a rotary table (H, N, C) is of each head, or else of each image

    def __init__(self, module: Any) -> None:
        self.module = module

    @property
    def norm2(self) -> Any:
        return getattr(self.module, self.norm2_name)

    @property
    def attention(self) -> Any:
        return getattr(self.module, self.attention_name)

    @property
    def mlp(self) -> Any:
        return self.module.mlp

    @property
    def branch(self) -> Any:
        return next((part for name in BEHIND_MLP if (part := getattr(self.module, name, None)) is not None), self.mlp)

    @property
    def only_adds(self) -> bool:
        """Whether no weight of the block itself, which may change, scales what the branch gives."""
        return not self.module._parameters or hasattr(self.module, "drop_path2")

    @property
    def heads(self) -> int:
        return self.attention.num_heads

    def listen_keys(self, heard: Callable[[Tensor], None]) -> Handle:
        """Call ``heard`` with (B, N, H * d) keys, after the projection bias, every time the attention runs."""
        raise NotImplementedError

    def listen_attention(self, listener: Listener) -> Handle:
        """Tell ``listener`` query and key (B, H, N, d), as they are compared, every time the attention runs; or raise."""
        raise ValueError(
            f"queries and keys of a {type(self.module).__name__} are out of sight once they are rotated, so attention weights "
            "inside the encoder are not known; choose a method that reads keys or features there, or acts at the projector"
        )

    def bias_keys(self, bias: Bias) -> Handle:
        """Add ``bias()``, (B, N) or None, to the logits of every key, every time the attention runs."""
        return self.attention.register_forward_pre_hook(partial(_add_to_mask, bias), with_kwargs=True)


class TransformersBlock(Block):
    """Blocks of transformers: separate projections, an attention function chosen by the config."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.attention_name = _name_of(module, ATTENTION)  # type: ignore[misc]

    @property
    def norm2(self) -> Any:
        return getattr(self.module, _name_of(self.module, NORM_BEFORE_MLP))

    @property
    def mlp(self) -> Any:
        return getattr(self.module, _name_of(self.module, MLP))

    @property
    def heads(self) -> int:
        found = (
            getattr(m, name, None) for m in self.attention.modules() for name in ("num_heads", "num_attention_heads")
        )
        heads = next((n for n in found if n), None)
        return heads or self.attention.config.num_attention_heads

    @property
    def core(self) -> Any:
        """The module that projects the keys and calls the attention function; ``attention`` may be a shell around it."""
        return next(m for m in self.attention.modules() if hasattr(m, "k_proj") or hasattr(m, "key"))

    def listen_keys(self, heard: Callable[[Tensor], None]) -> Handle:
        keys = getattr(self.core, "k_proj", None) or self.core.key
        return keys.register_forward_hook(partial(_whole_output, heard))

    def listen_attention(self, listener: Listener) -> Handle:
        return Probe(self.core, listener)

    def bias_keys(self, bias: Bias) -> Handle:
        return KeyBias(self.core, bias)


def attention_of(module: Any) -> Any:
    """The attention module of a block of transformers.

    Errors: ``ValueError`` where it is under no known name.
    """
    return getattr(module, _name_of(module, ATTENTION))


def _name_of(module: Any, known: tuple[str, ...]) -> str:
    names = dict(module.named_children())
    found = next((name for name in known if name in names), None)
    if found is None:
        raise ValueError(
            f"a {type(module).__name__} has no {' or '.join(known)} among its modules {', '.join(names)}: this kind of block "
            "is not known; tokenreduce does not look into it"
        )
    return found


class TimmBlock(Block):
    """``Block`` of timm's VisionTransformer: one fused qkv projection."""

    def listen_keys(self, heard: Callable[[Tensor], None]) -> Handle:
        return self.attention.qkv.register_forward_hook(partial(_middle_third, heard))

    def listen_attention(self, listener: Listener) -> Handle:
        return self.attention.qkv.register_forward_hook(partial(_fused_query_and_key, listener, self.attention))


class PackedBlock(TimmBlock):
    """Blocks of Qwen-VL's towers, which run all pictures as one sequence (rows, C); heads may share keys."""

    @property
    def heads(self) -> int:
        return getattr(self.attention, "num_key_value_heads", None) or self.attention.num_heads

    def listen_keys(self, heard: Callable[[Tensor], None]) -> Handle:
        attention = self.attention
        for name in ("k", "k_proj"):
            if hasattr(attention, name):
                return getattr(attention, name).register_forward_hook(partial(_whole_output, heard))
        return attention.qkv.register_forward_hook(partial(_before_values, heard, self.heads * attention.head_dim))

    def listen_attention(self, listener: Listener) -> Handle:
        return Probe(self.attention, listener)

    def bias_keys(self, bias: Bias) -> Handle:
        return KeyBias(self.attention, bias)


class EvaBlock(Block):
    """``EvaBlock`` of timm (EVA, EVA02): projections fused or not, biases kept apart."""

    def listen_keys(self, heard: Callable[[Tensor], None]) -> Handle:
        attention = self.attention
        if getattr(attention, "qkv", None) is None:
            return attention.k_proj.register_forward_hook(partial(_whole_output, heard))
        return attention.register_forward_pre_hook(partial(_fused_projection, heard))


class MultiheadBlock(Block):
    """Around ``nn.MultiheadAttention``: ``ResidualAttentionBlock`` of open_clip, ``EncoderBlock`` of torchvision."""

    norm2_name = "ln_2"

    def __init__(self, module: Any, attention: str = "attn") -> None:
        super().__init__(module)
        self.attention_name = attention  # type: ignore[misc]

    def listen_keys(self, heard: Callable[[Tensor], None]) -> Handle:
        return self.attention.register_forward_pre_hook(partial(_in_projection, heard))

    def listen_attention(self, listener: Listener) -> Handle:
        return self.attention.register_forward_pre_hook(partial(_query_and_key_ahead, listener))

    def bias_keys(self, bias: Bias) -> Handle:
        return self.attention.register_forward_pre_hook(partial(_add_to_key_mask, bias), with_kwargs=True)


# Hooks are partials of functions, not closures: a deep copy of the model then speaks to the copy of the listener.


def _whole_output(heard: Callable[[Tensor], None], module: Any, args: Any, output: Tensor) -> None:
    heard(output)


def _middle_third(heard: Callable[[Tensor], None], module: Any, args: Any, output: Tensor) -> None:
    heard(output.chunk(3, dim=-1)[1])


def _before_values(heard: Callable[[Tensor], None], width: int, module: Any, args: Any, output: Tensor) -> None:
    heard(output[..., -2 * width : -width])


def _fused_projection(heard: Callable[[Tensor], None], module: Any, args: tuple[Any, ...]) -> None:
    weight = module.qkv.weight.chunk(3)[1]
    bias = module.qkv.bias.chunk(3)[1] if module.qkv.bias is not None else getattr(module, "k_bias", None)
    heard(F.linear(args[0], weight, bias))


def _in_projection(heard: Callable[[Tensor], None], module: Any, args: tuple[Any, ...]) -> None:
    width = module.embed_dim
    heard(F.linear(args[1], module.in_proj_weight[width : 2 * width], module.in_proj_bias[width : 2 * width]))


def _fused_query_and_key(listener: Listener, attention: Any, module: Any, args: Any, output: Tensor) -> None:
    query, key, _ = output.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    listener(attention, attention.q_norm(query), attention.k_norm(key), None, attention.scale, None)


def _query_and_key_ahead(listener: Listener, module: Any, args: tuple[Any, ...]) -> None:
    width = 2 * module.embed_dim
    both = F.linear(args[0], module.in_proj_weight[:width], module.in_proj_bias[:width])
    query, key = both.unflatten(-1, (2, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    listener(module, query, key, None, module.head_dim**-0.5, None)


def _add_to_mask(bias: Bias, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
    row = bias()
    if row is None:
        return None
    return args, {**kwargs, "attn_mask": masked(kwargs.get("attn_mask"), row.to(args[0].dtype))}


def _add_to_key_mask(bias: Bias, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
    """``key_padding_mask`` of nn.MultiheadAttention may be a float; its ``attn_mask`` would be (B * H, N, N)."""
    row = bias()
    return None if row is None else (args, {**kwargs, "key_padding_mask": row.to(args[0].dtype)})
