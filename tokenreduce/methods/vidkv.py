"""VidKV: after the prompt the cache holds keys of 1.5 bits and values of three levels; what the text asks about, of four."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor

from tokenreduce.cache_codec import Coded
from tokenreduce.channel_coding import coded_keys, coded_values
from tokenreduce.kernels.top_k import top_k
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.signals import Text
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import in_range, whole

ROLES = ("few bits", "protected")
HARD = 32  # channels at two bits where the share of keys says none


@dataclass(frozen=True, kw_only=True)
class VidKV(Method):
    """No token leaves: behind a prompt with a picture, the cache holds each in few bits, in groups of neighbours per channel. Of
    keys, the channels of largest range have two bits, the others the signs of their Fourier coefficients; of values, three
    levels, or two bits for the visual tokens closest to the text. The prompt itself is read with exact keys and values.

    Attributes:
        keep: 1.0 is off, as for every method. Any other budget is one of tokens, of which this drops none; None, the default.
        key_bits: 1 + rho: rho is the share of channels at two bits, by floor; 1.0: none of them.
        protect: r, share of the visual tokens of a picture whose values have two bits, in whole groups and at least one; 0: none.
        group: tokens that share a scale; what is left of a prompt beyond whole groups stays exact.
        residual: tokens written after the prompt stay exact until so many have come; None: always.

    Source: Tao et al., "Plug-and-Play 1.x-Bit KV Cache Quantization for Video Large Language Models", 2025, arXiv 2503.16257.
    Departures from the release: signs and scales as in the text of the paper; half of the Fourier coefficients, which tell the
        rest; what is coded is never coded again; ranges and means are of each row of a batch alone and without its padding;
        all protected tokens are. See its page.
    """

    name = "vidkv"
    title = "a cache of 1.5-bit keys and 1.58-bit values"
    paper = "arXiv 2503.16257"
    stages = ("cache",)
    looks_at = "keys and values; likeness of visual tokens to the text"
    sees = "image"
    shortens = False

    keep: float | int | None = None
    key_bits: float = 1.5
    protect: float = 0.2
    group: int = 32
    residual: int | None = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("key_bits", self.key_bits, 1, 2)
        in_range("protect", self.protect, 0, 1)
        whole("group", self.group, 2, " (tokens that share a scale), 32 in the paper")
        whole("residual", self.residual, self.group, f" (as group={self.group}), 128 in the paper", none=True)

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        coding = Step("cache", layer=0, codec=self)
        return (Step("projector", needs=(Text(),)), coding) if self.protect else (coding,)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        if tokens.stage == "projector":
            found = relevance(tokens.features, tokens.signal(Text()).mean())
            return Reduction.identity(tokens, notes={"relevance": on_originals(found, tokens.assign, -torch.inf)})
        role = torch.zeros_like(tokens.role)
        if self.protect:
            known = tokens.notes["relevance"].float()
            at = torch.where(tokens.assign < 0, tokens.num_tokens, tokens.assign)
            score = known.new_full((len(role), tokens.num_tokens + 1), -torch.inf).scatter_reduce(1, at, known, "amax")
            k = min(protected_count(tokens.num_tokens, self.protect, self.group), tokens.num_tokens)
            role.scatter_(1, top_k(score[:, :-1], k), 1)
        return Reduction.identity(
            tokens,
            role=role,
            role_names=ROLES,
            notes={"protected": on_originals(role, tokens.assign, 0).bool()},
        )

    # ------------------------------------------------------------------ the codec

    def keys(self, x: Tensor, valid: Tensor | None) -> Coded:
        return coded_keys(x, valid, hard_count(x.shape[-1], self.key_bits), self.group)

    def values(self, x: Tensor, valid: Tensor | None, protected: bool) -> Coded:
        return coded_values(x, valid, 4 if protected else 3, self.group)


def relevance(x: Tensor, text: Tensor) -> Tensor:
    """(B, N) float32, products of embeddings ``x`` (B, N, D) with the mean of the text, (B, D), so the mean of the products."""
    return (x.float() @ text[..., None])[..., 0]


def on_originals(x: Tensor, assign: Tensor, absent: float) -> Tensor:
    """(B, N0), what ``x`` (B, N) says of the token that stands for each original one, ``assign`` (B, N0); -1: ``absent``."""
    return x.gather(1, assign.clamp_min(0)).masked_fill(assign < 0, absent)


def protected_count(n: int, share: float, group: int) -> int:
    """How many of ``n`` visual tokens are protected, before there are too few of them: whole groups, at least one."""
    return max(group, group * floor(n * share / group + 1e-9))


def hard_count(channels: int, bits: float) -> int:
    """How many of the ``channels`` of keys have two bits."""
    return 0 if bits == 1 else min(floor((bits - 1) * channels + 1e-9) or HARD, channels)
