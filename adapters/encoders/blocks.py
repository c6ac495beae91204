"""Transformer blocks of vision encoders: where attention and MLP sit, how keys are heard, how a bias for every key gets in.

One small class per kind of block; nothing of a block's forward is repeated here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenreduce.adapters.attention_functions import Bias, KeyBias, Listener, Probe
from tokenreduce.adapters.encoders.block_listeners import (
    add_to_key_mask,
    add_to_mask,
    before_values,
    fused_projection,
    fused_query_and_key,
    in_projection,
    middle_third,
    query_and_key_ahead,
    whole_output,
)

Handle = Any
ATTENTION = ("self_attn", "attention", "attn")  # names of a block's attention module in transformers
#: of the one whose input is the residual stream in between
NORM_BEFORE_MLP = ("layer_norm2", "norm2", "layernorm_after", "rms_norm2")
MLP = ("mlp", "ffn")
BEHIND_MLP = ("drop_path2", "layer_scale2", "ls2", "ls_2")  # what its output goes through, the last first


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
    def core(self) -> Any:
        """The module that projects the keys and calls the attention function; ``attention`` may be a shell around it."""
        return self.attention

    @property
    def only_adds(self) -> bool:
        """Whether no weight of the block itself, which may change, scales what the branch gives."""
        return not self.module._parameters or hasattr(self.module, "drop_path2")

    @property
    def heads(self) -> int:
        return self.attention.num_heads

    @property
    def merges_heads(self) -> bool:
        """Whether what merges around attention are queries, keys and values, by the attention function, or else its input.

        Errors: ``ValueError`` where the two differ, by a norm or a rotation, and queries are out of sight.
        """
        normed = getattr(self.attention, "q_norm", None)
        if isinstance(self, EvaBlock) or not (normed is None or isinstance(normed, nn.Identity)):
            raise ValueError(
                f"queries and keys of a {type(self.attention).__name__} are normed or rotated out of sight, behind which they "
                "would have to merge; allowed around attention: vision models of transformers, or blocks without either"
            )
        return False

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
        return self.attention.register_forward_pre_hook(partial(add_to_mask, bias), with_kwargs=True)


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
        return next(m for m in self.attention.modules() if hasattr(m, "k_proj") or hasattr(m, "key"))

    @property
    def merges_heads(self) -> bool:
        return True

    def listen_keys(self, heard: Callable[[Tensor], None]) -> Handle:
        keys = getattr(self.core, "k_proj", None) or self.core.key
        return keys.register_forward_hook(partial(whole_output, heard))

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
        return self.attention.qkv.register_forward_hook(partial(middle_third, heard))

    def listen_attention(self, listener: Listener) -> Handle:
        return self.attention.qkv.register_forward_hook(partial(fused_query_and_key, listener, self.attention))


class PackedBlock(TimmBlock):
    """Blocks of Qwen-VL's towers, which run all pictures as one sequence (rows, C); heads may share keys."""

    @property
    def heads(self) -> int:
        return getattr(self.attention, "num_key_value_heads", None) or self.attention.num_heads

    def listen_keys(self, heard: Callable[[Tensor], None]) -> Handle:
        attention = self.attention
        for name in ("k", "k_proj"):
            if hasattr(attention, name):
                return getattr(attention, name).register_forward_hook(partial(whole_output, heard))
        return attention.qkv.register_forward_hook(partial(before_values, heard, self.heads * attention.head_dim))

    def listen_attention(self, listener: Listener) -> Handle:
        return Probe(self.attention, listener)

    def bias_keys(self, bias: Bias) -> Handle:
        return KeyBias(self.attention, bias)


class EvaBlock(Block):
    """``EvaBlock`` of timm (EVA, EVA02): projections fused or not, biases kept apart."""

    def listen_keys(self, heard: Callable[[Tensor], None]) -> Handle:
        attention = self.attention
        if getattr(attention, "qkv", None) is None:
            return attention.k_proj.register_forward_hook(partial(whole_output, heard))
        return attention.register_forward_pre_hook(partial(fused_projection, heard))


class MultiheadBlock(Block):
    """Around ``nn.MultiheadAttention``: ``ResidualAttentionBlock`` of open_clip, ``EncoderBlock`` of torchvision."""

    norm2_name = "ln_2"

    def __init__(self, module: Any, attention: str = "attn") -> None:
        super().__init__(module)
        self.attention_name = attention  # type: ignore[misc]

    def listen_keys(self, heard: Callable[[Tensor], None]) -> Handle:
        return self.attention.register_forward_pre_hook(partial(in_projection, heard))

    def listen_attention(self, listener: Listener) -> Handle:
        return self.attention.register_forward_pre_hook(partial(query_and_key_ahead, listener))

    def bias_keys(self, bias: Bias) -> Handle:
        return self.attention.register_forward_pre_hook(partial(add_to_key_mask, bias), with_kwargs=True)
