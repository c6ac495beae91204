"""Transformer blocks of vision encoders: where attention and MLP sit, how keys are heard, how a size bias gets in.

One small class per kind of block; nothing of a block's forward is repeated here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

Handle = Any
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Block:
    """A pre-norm block ``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``.

    Attributes:
        norm2: the module whose input is the residual stream between attention and MLP.
        attention: the attention module; ``mlp``: the module whose output joins the residual stream.
    """

    norm2_name: ClassVar[str] = "norm2"
    attention_name: ClassVar[str] = "attn"
    mask_name: ClassVar[str] = "attn_mask"
    mask_place: ClassVar[int | None] = None  # position of the mask among positional arguments, if ever passed so

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
    def heads(self) -> int:
        return self.attention.num_heads

    def listen_keys(self, heard: Callable[[Tensor], None]) -> Handle:
        """Call ``heard`` with (B, N, H * d) keys, after the projection bias, every time the attention runs."""
        raise NotImplementedError

    def with_bias(self, args: tuple[Any, ...], kwargs: dict[str, Any], bias: Tensor) -> Arguments:
        """Arguments of the attention with ``bias`` (B, N) added to the logits of every key."""
        mask = bias[:, None, None, :]
        if self.mask_place is not None and len(args) > self.mask_place:
            mask = _sum(args[self.mask_place], mask)
            return (*args[: self.mask_place], mask, *args[self.mask_place + 1 :]), kwargs
        return args, {**kwargs, self.mask_name: _sum(kwargs.get(self.mask_name), mask)}


class TransformersBlock(Block):
    """Blocks of transformers: separate projections, ``attention_mask``."""

    mask_name = "attention_mask"
    mask_place = 1

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        names = dict(module.named_children())
        self.norm2_name = next(n for n in ("layer_norm2", "norm2", "layernorm_after") if n in names)  # type: ignore[misc]
        self.attention_name = next(n for n in ("self_attn", "attention") if n in names)  # type: ignore[misc]

    @property
    def heads(self) -> int:
        found = (
            getattr(m, name, None) for m in self.attention.modules() for name in ("num_heads", "num_attention_heads")
        )
        heads = next((n for n in found if n), None)
        return heads or self.attention.config.num_attention_heads

    def listen_keys(self, heard: Callable[[Tensor], None]) -> Handle:
        keys = next(m for n, m in self.attention.named_modules() if n.rpartition(".")[2] in ("k_proj", "key"))
        return keys.register_forward_hook(partial(_whole_output, heard))

    def with_bias(self, args: tuple[Any, ...], kwargs: dict[str, Any], bias: Tensor) -> Arguments:
        if "attention_mask" not in inspect.signature(self.attention.forward).parameters:
            raise ValueError(
                f"proportional attention needs an attention mask, which {type(self.attention).__name__} of this version of "
                "transformers does not take; update transformers (5.18 or newer) or pass proportional=False"
            )
        name = self.attention.config._attn_implementation
        if "flash" in name:
            raise ValueError(
                f"proportional attention adds a bias to the attention logits, which {name!r} does not take; put the "
                "tower on sdpa (model.set_attn_implementation({'vision_config': 'sdpa'})) or pass proportional=False"
            )
        return super().with_bias(args, kwargs, bias)


class TimmBlock(Block):
    """``Block`` of timm's VisionTransformer: one fused qkv projection."""

    def listen_keys(self, heard: Callable[[Tensor], None]) -> Handle:
        return self.attention.qkv.register_forward_hook(partial(_middle_third, heard))


class EvaBlock(Block):
    """``EvaBlock`` of timm (EVA, EVA02): projections fused or not, biases kept apart."""

    def listen_keys(self, heard: Callable[[Tensor], None]) -> Handle:
        attention = self.attention
        if getattr(attention, "qkv", None) is None:
            return attention.k_proj.register_forward_hook(partial(_whole_output, heard))
        return attention.register_forward_pre_hook(partial(_fused_projection, heard))


class OpenClipBlock(Block):
    """``ResidualAttentionBlock`` of open_clip: ``nn.MultiheadAttention``."""

    norm2_name = "ln_2"

    def listen_keys(self, heard: Callable[[Tensor], None]) -> Handle:
        return self.attention.register_forward_pre_hook(partial(_in_projection, heard))

    def with_bias(self, args: tuple[Any, ...], kwargs: dict[str, Any], bias: Tensor) -> Arguments:
        batch, n = bias.shape
        mask = bias[:, None, None, :].expand(batch, self.heads, n, n).reshape(batch * self.heads, n, n)
        return args, {**kwargs, "attn_mask": _sum(kwargs.get("attn_mask"), mask)}


# Hooks are partials of functions, not closures: a deep copy of the model then speaks to the copy of the listener.


def _whole_output(heard: Callable[[Tensor], None], module: Any, args: Any, output: Tensor) -> None:
    heard(output)


def _middle_third(heard: Callable[[Tensor], None], module: Any, args: Any, output: Tensor) -> None:
    heard(output.chunk(3, dim=-1)[1])


def _fused_projection(heard: Callable[[Tensor], None], module: Any, args: tuple[Any, ...]) -> None:
    weight = module.qkv.weight.chunk(3)[1]
    bias = module.qkv.bias.chunk(3)[1] if module.qkv.bias is not None else getattr(module, "k_bias", None)
    heard(F.linear(args[0], weight, bias))


def _in_projection(heard: Callable[[Tensor], None], module: Any, args: tuple[Any, ...]) -> None:
    width = module.embed_dim
    heard(F.linear(args[1], module.in_proj_weight[width : 2 * width], module.in_proj_bias[width : 2 * width]))


def _sum(mask: Any, bias: Tensor) -> Tensor:
    if mask is None:
        return bias
    if mask.dtype.is_floating_point:
        return mask + bias
    return bias.masked_fill(~mask, float("-inf"))
