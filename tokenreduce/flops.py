"""FLOPs of a module, read off its weights: what a token passes through, and what a query and a key cost together.

Counted as `torch.utils.flop_counter` counts: matrix products and convolutions, a multiply-add being 2. Attention is counted
over the full square of queries and keys, without a discount for causality, as is customary in this literature. Norms,
embeddings, rotary tables and the head over the vocabulary are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from torch import nn
from torch.nn.modules.conv import _ConvNd

CHUNK = 64  # tokens that gated linear attention works on at once (Yang et al., 2024, arXiv 2412.06464)


def matrices(module: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """The linear layers and convolutions inside ``module``, each with its multiply-adds per row that it returns.

    A layer with a layer inside, such as an adapter of PEFT around a base layer, is what is inside it. Quantised layers count
    by the sizes they say they have.
    """
    inner = [pair for child in module.children() for pair in matrices(child)]
    if inner:
        yield from inner
    elif isinstance(getattr(module, "in_features", None), int):
        yield module, int(module.in_features) * int(module.out_features)  # type: ignore[arg-type]
    elif isinstance(module, _ConvNd):
        yield module, module.weight.numel()


def products(module: nn.Module, per_token: int = 1) -> int:
    """Multiply-adds of one token that passes every matrix of ``module``: layers, convolutions and bare parameters.

    Of a mixture of experts it passes the router and ``per_token`` of the ``experts``.
    """
    if isinstance(module, nn.Embedding):
        return 0
    own = dict(matrices(module)).get(module)
    if own is not None:
        return own
    total = sum(p.numel() for p in module.parameters(recurse=False) if p.ndim == 2)
    for name, child in module.named_children():
        if name != "experts":
            total += products(child, per_token)
        elif isinstance(child, nn.ModuleList):
            total += per_token * products(child[0])
        else:  # all experts in one parameter
            total += per_token * sum(p.numel() // p.shape[0] for p in child.parameters() if p.ndim == 3)
    return total


def values_width(attention: nn.Module) -> int:
    """Channels of the values of all heads together: what the last matrix of ``attention``, its output projection, takes."""
    last = [module for module, _ in matrices(attention)][-1]
    return int(last.in_features)  # type: ignore[arg-type]


@dataclass(frozen=True)
class DeltaState:
    """The state of gated linear attention: ``heads`` matrices of ``key`` x ``value`` channels."""

    key: int
    value: int
    heads: int

    def products(self, new: int) -> int:
        """Multiply-adds of the gated delta rule: by chunks of a prompt, or by one token."""
        key, value = self.key, self.value
        if new == 1:  # what the state predicts, its correction, what the query reads
            return 3 * self.heads * key * value
        # within a chunk: keys and queries with keys, the triangular system solved for values and keys, weighted values;
        # with the state: predicted values, what queries read, the update
        chunk = CHUNK * (2 * key + (key + value) // 2 + value) + 3 * key * value
        return ceil(new / CHUNK) * CHUNK * self.heads * chunk


@dataclass(frozen=True)
class ScanState:
    """The state of a selective scan (Mamba 2): ``heads`` matrices of ``size`` x ``value`` channels, by chunks of ``chunk``."""

    size: int
    value: int
    heads: int
    chunk: int

    def products(self, new: int) -> int:
        """Multiply-adds of the scan: by chunks of a prompt, or by one token."""
        element = self.size * self.value
        if new == 1:  # the update, and what is read
            return 2 * self.heads * element
        # within a chunk: queries with keys, weighted values; with the state: the update, and what is read
        chunks = ceil(new / self.chunk)
        inside = chunks * self.chunk * (self.chunk * (self.size + self.value) + 2 * element)
        return self.heads * (inside + (chunks + 1) ** 2 * element)  # and states handed from chunk to chunk


@dataclass(frozen=True)
class LayerShape:
    """The numbers of one decoder layer that FLOPs follow from.

    Attributes:
        products: multiply-adds of a token in the layer's matrices.
        pictured: how many more a token of a picture has, where it passes experts of its own; fewer are below 0.
        pair: multiply-adds of a query with a key: their score, and the key's value weighted; 0 without attention.
        again: multiply-adds of an earlier token, whose keys and values are made of what the cache holds in every call.
        window: tokens that attention looks back on, the token itself included; None for all.
        state: of a linear-attention layer; None without one.
    """

    products: int
    pair: int = 0
    again: int = 0
    window: int | None = None
    state: DeltaState | ScanState | None = None
    pictured: int = 0

    def seen(self, past: int) -> int:
        """How many of ``past`` earlier tokens are still there for the next one."""
        return past if self.window is None else min(past, self.window - 1)

    def flops(self, new: int, past: int, pictured: int = 0) -> int:
        """FLOPs over ``new`` tokens, ``pictured`` of them of pictures, with ``past`` before them."""
        mixing = new * (self.seen(past) + new) * self.pair + self.seen(past) * self.again
        return 2 * (
            new * self.products + pictured * self.pictured + mixing + (self.state.products(new) if self.state else 0)
        )


@dataclass(frozen=True)
class AcrossShape:
    """Attention of a decoder to rows beside its sequence, in all layers that have one together.

    Attributes:
        row: multiply-adds of a row attended to, in the matrices of keys and values.
        pair: multiply-adds of a query with a row: their score, and the row's value weighted.
    """

    row: int
    pair: int

    def flops(self, tokens: int, new: int, rows: int) -> int:
        """FLOPs of ``tokens`` that attend to ``rows``, ``new`` ones among them.

        Less what the shape of a decoder counts for these tokens in the matrices of keys and values, which they do not pass.
        """
        return 2 * ((new - tokens) * self.row + tokens * rows * self.pair)


@dataclass(frozen=True)
class DecoderShape:
    """The layers of a decoder, and what a token multiplies outside them."""

    layers: tuple[LayerShape, ...]
    outside: int = 0

    @property
    def depth(self) -> int:
        return len(self.layers)

    def prefill(self, tokens: Sequence[int], past: Sequence[int], pictured: Sequence[int] | None = None) -> int:
        """FLOPs over a chunk of a prompt, of which layer i works on ``tokens[i]`` with ``past[i]`` cached before.

        ``pictured[i]`` of the tokens are of pictures, which matters to experts by modality alone; None: no token is.
        """
        each = zip(self.layers, tokens, past, [0] * self.depth if pictured is None else pictured, strict=True)
        inside = sum(layer.flops(n, before, own) for layer, n, before, own in each)
        return inside + 2 * tokens[0] * self.outside

    def step(self, past: Sequence[int]) -> int:
        """FLOPs of one new token, for which layer i has cached ``past[i]``."""
        return self.prefill([1] * self.depth, past)
