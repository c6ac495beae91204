"""EViT: in a few encoder blocks, the patches that [CLS] attends to most stay, and the others become one token, their sum."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.block_schedule import BlockSchedule
from tokenreduce.matching import OutputOrder
from tokenreduce.method import Step
from tokenreduce.mixing import Mix
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import DROPPED, Reduction
from tokenreduce.schedules import scaled_layers
from tokenreduce.signals import AttentionReceived, ClsAttention
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import ascending, choice

BLOCKS = (3, 6, 9)  # of 12


class Cut(NamedTuple):
    """What one block keeps: ``rate`` of its tokens, rounded up, or a ``number``. ``most``: at most all but so many.

    ``absorbs``: an earlier fused token is never kept, but becomes part of the new one.
    """

    rate: float = 1.0
    number: int | None = None
    absorbs: bool = False
    most: int = 0

    def kept(self, n: int) -> int:
        return min(math.ceil(self.rate * n) if self.number is None else self.number, n - self.most)


@dataclass(frozen=True, kw_only=True)
class EViT(BlockSchedule):
    """After the attention of three blocks, rank the patches by the attention that [CLS] pays them there, mean over heads.
    The first ones stay, the rest is summed with these weights, which add up to less than 1, into one fused token that
    takes part like a patch from then on.

    Attributes:
        keep: fraction or count of the *patches* that leave the tower, hit exactly; None: 0.5, unless ``keep_rate`` is given.
            A fused token that leaves the tower counts as one.
        keep_rate: share of its tokens that a block keeps, in (0, 1], rounded up, instead of ``keep``: one number for all of
            ``blocks``, or a list, one per block of the tower from the first, padded with 1.
        blocks: where patches leave, 0-based; None: blocks 3, 6 and 9 of 12, in proportion. A list of rates says itself.
        fuse_token: whether the rest becomes a fused token; False: it is dropped.
        fuse_norm: divide the fused token by the sum of its weights, which the release does not.
        keep_fused: whether fused tokens leave the tower. None: no in a vision-language model, for which they have an unusual
            length and no place; yes in an encoder alone, as released.
        output_order: order in which a language model reads the rows. ``raster``: sorted by the patch each row sits at, a
            fused token at its most attended one; ``reference``: by falling attention in the last of ``blocks``, ids renumbered.
        positions: policy of position ids in ``raster`` order.

    Source: Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations",
        ICLR 2022, arXiv 2202.07800, section 3.
    Departures from the release: attention is ranked in float32 and ties go to the lowest index; distillation tokens and
        registers are never ranked. Where fused tokens do not leave the tower, the last block that reduces sums earlier ones
        into its own, so that every image is left with equally many patches. A tower without [CLS] ranks by the attention
        that patches receive from all.
    """

    name = "evit"
    title = "keep what [CLS] attends to, fuse the rest, in three blocks"
    paper = "arXiv 2202.07800"
    stages = ("encoder",)
    looks_at = "[CLS] attention of three blocks (attention received where there is none)"
    sees = "frame"

    schedules = {"keep_rate": 1}

    keep_rate: float | list[float] | None = None
    blocks: tuple[int, ...] | None = None
    fuse_token: bool = True
    fuse_norm: bool = False
    keep_fused: bool | None = None
    output_order: OutputOrder = "raster"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("output_order", self.output_order, ("raster", "reference"))
        rates = (
            self.keep_rate if isinstance(self.keep_rate, list) else [1.0 if self.keep_rate is None else self.keep_rate]
        )
        for rate in rates:
            if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
                raise ValueError(
                    f"keep_rate={self.keep_rate!r}; allowed: the share that a block keeps, in (0, 1], or a list of such"
                )
        if self.blocks is not None:
            ascending("blocks", self.blocks, 0, "Blocks of the tower, counted from 0.")
        if self.blocks is not None and isinstance(self.keep_rate, list):
            raise ValueError(
                f"blocks={self.blocks!r}, but keep_rate={self.keep_rate!r} has a rate for every block; give one"
            )
        if not self.fuse_token and (self.keep_fused or self.fuse_norm):
            said = "keep_fused" if self.keep_fused else "fuse_norm"
            raise ValueError(f"{said}=True belongs to fuse_token=True; with fuse_token=False leave it out")

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        blocks = self._blocks(facts)
        drops = self.fuse_token and not self._leaves(facts)
        counts = None if facts.tower_grid is None else self._counts(math.prod(facts.tower_grid), len(blocks), drops)
        steps = []
        for t, block in enumerate(blocks):
            last = drops and t == len(blocks) - 1
            cut = None if counts is None else Cut(number=counts[t], absorbs=last)
            if self.keep_rate is not None:
                rate = self.keep_rate[block] if isinstance(self.keep_rate, list) else self.keep_rate
                cut = Cut(rate, absorbs=last, most=t if last else 0)
            needs = ClsAttention(block) if facts.has_cls else AttentionReceived(block)
            steps.append(Step("encoder", layer=block, needs=(needs,), amount=cut))
        if drops:
            steps.append(Step("encoder", layer=facts.feature_block, amount=Cut(0.0), when="after"))
        return tuple(steps)

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        return () if facts.has_cls else ("the attention that patches receive from all in place of that of [CLS]",)

    def _blocks(self, facts: ModelFacts) -> tuple[int, ...]:
        if isinstance(self.keep_rate, list):
            if len(self.keep_rate) > facts.tower_depth:
                raise ValueError(
                    f"keep_rate has {len(self.keep_rate)} entries for the {facts.tower_depth} blocks of this tower; give at "
                    f"most {facts.tower_depth}"
                )
            return tuple(b for b, rate in enumerate(self.keep_rate[: facts.feature_block + 1]) if rate < 1)
        if self.blocks is None:
            return scaled_layers(BLOCKS, 12, facts.tower_depth, last=facts.feature_block)
        return tuple(sorted(set(self.blocks)))

    def _leaves(self, facts: ModelFacts) -> bool:
        """Whether a fused token leaves the tower."""
        return not facts.decoder_depth if self.keep_fused is None else self.keep_fused

    def _counts(self, n: int, times: int, drops: bool) -> list[int]:
        """Tokens that each of ``times`` blocks keeps beside a new fused token, of ``n`` patches."""
        k = self.budget.count(n)
        counts = [round(n * (k / n) ** (t / times)) for t in range(1, times)]
        # an earlier fused token may take a patch's place in all blocks but the last
        counts = [max(count, k + t if drops else k) for t, count in enumerate(counts)]
        return [*counts, k - (self.fuse_token and not drops)]

    def reduce(self, tokens: VisualTokens) -> Reduction:
        cut, prefix = tokens.amount, tokens.prefix
        assert isinstance(cut, Cut), "every step has such an amount"
        n, fused = tokens.num_tokens - prefix, self._fused(tokens)
        if not tokens.signals:
            if fused is None:
                return Reduction.identity(tokens, positions=self.policy)
            kept = fused.sort(dim=1, stable=True).indices[:, :-1]
            return replace(Reduction.select(kept, tokens.num_tokens), positions=self.policy)
        k = cut.kept(n)
        if k >= n:
            return Reduction.identity(tokens, positions=self.policy)
        attention = next(iter(tokens.signals.values()))[:, prefix:].float()
        rank = attention
        if cut.absorbs and fused is not None:
            rank = attention.masked_fill(fused[:, prefix:], -math.inf)
        order = rank.sort(dim=1, descending=True, stable=True).indices
        source = F.pad(order[:, : k + self.fuse_token] + prefix, (prefix, 0))
        source[:, :prefix] = torch.arange(prefix, device=source.device)
        row = torch.arange(n, device=order.device)
        row = torch.where(row < k, row + prefix, prefix + k if self.fuse_token else DROPPED).expand_as(order)
        assign = torch.cat([source[:, :prefix], torch.zeros_like(order).scatter(1, order, row)], dim=1)
        plan = Reduction(source, assign, positions=self.policy)
        return replace(plan, **self._fusion(tokens, plan, attention, order[:, k:])) if self.fuse_token else plan

    def _fusion(self, tokens: VisualTokens, plan: Reduction, attention: Tensor, rest: Tensor) -> dict:
        """The last row of ``plan`` as the sum of the patches ``rest`` (B, E), the first of which it sits at."""
        weight = attention.gather(1, rest)
        if self.fuse_norm:
            weight = weight / weight.sum(dim=1, keepdim=True)
        own = F.one_hot(torch.zeros_like(rest[:, 0]), rest.shape[1])
        rows = torch.full_like(rest[:, :1], plan.num_kept - 1)
        fused = self._fused(tokens)
        kept = torch.zeros_like(plan.source, dtype=torch.bool) if fused is None else fused.gather(1, plan.source)
        kept[:, -1] = True
        place = torch.zeros(len(rest), tokens.prefix + tokens.layout.num_tokens, dtype=torch.bool, device=rest.device)
        return {
            "mix": Mix(rows, rest + tokens.prefix, (weight - own)[:, None]),
            "notes": {"fused": place.scatter(1, tokens.source.gather(1, plan.source), kept)},
        }

    @staticmethod
    def _fused(tokens: VisualTokens) -> Tensor | None:
        """(B, N) bool, which tokens are sums; None: no block has made one."""
        noted = tokens.notes.get("fused")
        return None if noted is None else noted.gather(1, tokens.source)
