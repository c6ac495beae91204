"""In front of single attention functions of transformers: statistics from q and k, a bias for every key, fewer keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenreduce.adapters.upstream.attention import attention_function, borders_of, choosing, implementation, register
from tokenreduce.attention_rows import AttentionRows
from tokenreduce.per_thread import PerThread, nothing

PREFIX = "tokenreduce|"
MULTIPLE = 8  # head dims that fused kernels take
TAKES_BIAS = ("sdpa", "eager")  # as a mask; any other kernel is given the bias in channels of q and k
#: called with the module, query, key, mask, scale, and the borders of packed sequences in one call, else None
Listener = Callable[[nn.Module, Tensor, Tensor, Any, float, Tensor | None], None]
#: (B, N) float to be added to the logits of every key; None: nothing
Bias = Callable[[], Tensor | None]
#: (B, R) long, the keys that are attended to, and (B, R) bool, which of them count, None: all; None: every key
Selection = Callable[[], "tuple[Tensor, Tensor | None] | None"]
#: what queries, keys and values merge into, and which row each place is given back; None: all stay
Around = Callable[[], AttentionRows | None]


def masked(mask: Tensor | None, bias: Tensor) -> Tensor:
    """Attention mask with ``bias`` (B, N) added for every key; a bool ``mask`` is True where a query sees a key."""
    row = bias[:, None, None]
    if mask is None:
        return row
    if mask.is_floating_point():
        return mask + row.to(mask.dtype)
    return row.masked_fill(~mask, float("-inf"))


def lengthened(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """``query``, ``key`` and ``value`` (B, H, N, d) whose attention with the same ``scale`` and no bias equals

        softmax(scale * query @ key.mT + bias[:, None, None]) @ value

    in the first d channels: queries are lengthened by ones, keys by ``bias / scale``, in two channels, its bfloat16 value
    and what that leaves, so that keys of half precision carry it to 16 bits and more. Zeros fill all three up to the
    same multiple of 8.
    """
    d = query.shape[-1]
    width = -(-max(d + 2, value.shape[-1]) // MULTIPLE) * MULTIPLE
    query, key, value = (F.pad(x, (0, width - x.shape[-1])) for x in (query, key, value))
    share = (bias / scale)[:, None]
    high = share.bfloat16().to(share.dtype)
    query[..., d : d + 2] = 1
    key[..., d] = high
    key[..., d + 1] = share - high
    return query, key, value


def selected(
    key: Tensor, value: Tensor, mask: Tensor | None, index: Tensor, counts: Tensor | None, *, additive: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``key`` and ``value`` (B, H, N, d) and a ``mask`` of theirs, (B, N) or (B, H, Q, N), at the keys ``index`` (B, R).

    ``counts`` (B, R) bool: those that are no filling; None: all. ``additive``: where there is no mask and some do not count,
    the form of the one that is made: to be added to the logits, or (B, R) bool.
    """
    at = index[:, None, :, None]
    key, value = (x.gather(2, at.expand(-1, x.shape[1], -1, x.shape[3])) for x in (key, value))
    if mask is not None and mask.ndim == 4:
        mask = mask.expand(len(index), -1, -1, -1).gather(3, index[:, None, None].expand(-1, *mask.shape[1:3], -1))
    elif mask is not None:
        mask = mask.gather(1, index)
    elif counts is not None:
        mask = key.new_zeros(len(index), 1, 1, index.shape[1]) if additive else torch.ones_like(counts)
    if counts is None or mask is None:
        return key, value, mask
    low = torch.finfo(mask.dtype).min if mask.is_floating_point() else 0
    return key, value, mask.masked_fill(~(counts if mask.ndim == 2 else counts[:, None, None]), low)


def _fronted(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """Attention function of a fronted module: tell the listeners q and k, then run the module's own attention."""
    front = module._tokenreduce_front
    scale = kwargs.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if front.instead is not None:
        front.instead(module, query, key, None, scale, None)
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None
    name = implementation(front.config)
    bias = front.bias() if front.bias is not None else None
    bias = None if bias is None else front.of_segment(bias, key.shape[2])
    seen = attention_mask
    if bias is not None:  # kernels that take no bias have masks of other forms, or none
        seen = masked(seen if isinstance(seen, Tensor) and seen.ndim == 4 else None, bias)
    for listener in front.listeners:
        listener(module, query, key, seen, scale, borders_of(kwargs))
    width = value.shape[-1]
    if bias is not None and name in TAKES_BIAS:
        attention_mask = seen.to(query.dtype)
    elif bias is not None:
        query, key, value = lengthened(query, key, value, bias, scale)
        kwargs["scaling"] = scale
    chosen = front.selection() if front.selection is not None else None
    if chosen is not None:
        key, value, attention_mask = selected(key, value, attention_mask, *chosen, additive=name in TAKES_BIAS)
    around = front.around() if front.around is not None else None
    if around is not None:
        if isinstance(attention_mask, Tensor):
            raise ValueError("rows merge around an attention with a mask; allowed: images of one size, without padding")
        query, key, value = (
            around.merge(x.transpose(1, 2).flatten(2)).unflatten(2, (x.shape[1], -1)).transpose(1, 2)
            for x in (query, key, value)
        )
    base = attention_function(module, name)
    out = base(_AsConfigured(module, front.config), query, key, value, attention_mask, *args, **kwargs)
    if around is not None:
        out = around.copy_back(out[0].flatten(2)).view(len(query), -1, *out[0].shape[2:]), *out[1:]
    return out if value.shape[-1] == width else (out[0][..., :width], *out[1:])


class _AsConfigured:
    """``module`` as an attention function is to see it: with its own ``config``.

    The module itself is left alone while it runs, since other threads may be running it, too.
    """

    def __init__(self, module: Any, config: Any) -> None:
        self._module = module
        self.config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class Front:
    """Stands in front of the attention function of one module, and of no other, by giving it a copy of its config.

    transformers looks the attention function up by ``module.config`` at every call; the copy names a function
    registered for this purpose. The name of the module's own implementation stays part of the key because some models
    look for ``flash`` in it.
    """

    #: who is told q and k in place of any attention
    instead = PerThread[Listener | None](nothing)
    #: keys that were attended to so far, where a packed sequence comes in one call per segment
    attended = PerThread[int](int)

    def __init__(self, module: Any) -> None:
        self.name = PREFIX + implementation(module.config)
        register(self.name, _fronted)
        self.module = module
        self.config = module.config
        self.listeners: list[Listener] = []
        self.bias: Bias | None = None
        self.selection: Selection | None = None
        self.around: Around | None = None
        module._tokenreduce_front = self
        module.config = choosing(module.config, self.name)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        register(self.name, _fronted)  # in a process that unpickles a wrapped model

    @classmethod
    def of(cls, module: Any) -> Front:
        return getattr(module, "_tokenreduce_front", None) or cls(module)

    def restart(self, module: Any, args: Any) -> None:
        """Hook in front of the module: its segments come from the first on."""
        self.attended = 0

    def of_segment(self, bias: Tensor, keys: int) -> Tensor:
        """What of ``bias`` (B, N) belongs to the next ``keys`` keys."""
        if bias.shape[1] == keys:
            return bias
        first, self.attended = self.attended, self.attended + keys
        return bias[:, first : first + keys]

    @contextmanager
    def only_telling(self, listener: Listener) -> Iterator[None]:
        """Inside, in this thread, the module tells ``listener`` its q and k and attends to nothing: its values are zero."""
        self.instead = listener
        try:
            yield
        finally:
            self.instead = None

    def leave_if_idle(self) -> None:
        if not self.listeners and self.bias is None and self.selection is None and self.around is None:
            self.module.config = self.config
            del self.module._tokenreduce_front


class Probe:
    """Listens to one attention module, while it runs on its own attention kernel."""

    def __init__(self, module: Any, listener: Listener) -> None:
        self.front = Front.of(module)
        self.listener = listener
        self.front.listeners.append(listener)

    def remove(self) -> None:
        self.front.listeners.remove(self.listener)
        self.front.leave_if_idle()


class KeyBias:
    """Adds ``bias()`` to the logits of one attention module, on its own attention kernel whether or not it takes a mask."""

    def __init__(self, module: Any, bias: Bias) -> None:
        self.front = Front.of(module)
        self.front.bias = bias
        self.start = module.register_forward_pre_hook(self.front.restart)

    def remove(self) -> None:
        self.start.remove()
        self.front.bias = None
        self.front.leave_if_idle()


class _FrontPart:
    """What one attention module does otherwise until it is removed; ``part`` names it at the front."""

    part: ClassVar[str]

    def __init__(self, module: Any, given: Any) -> None:
        self.front = Front.of(module)
        setattr(self.front, self.part, given)

    def remove(self) -> None:
        setattr(self.front, self.part, None)
        self.front.leave_if_idle()


class KeySelection(_FrontPart):
    """Lets one attention module attend to the keys that a ``Selection`` names, and to no other, on its own attention kernel."""

    part = "selection"


class MergedAttention(_FrontPart):
    """Lets one attention module attend on fewer rows, as ``Around`` says, and gives each place the result of its row."""

    part = "around"
