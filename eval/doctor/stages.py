"""One method for each stage, and what each leaves of a prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import tokenreduce as tr
from tokenreduce.eval import tiny_models

from .shortened import Columns, hooked

PAIRS, BLOCK = 3, 1  # pairs merged in an encoder, after this block


@dataclass(frozen=True, kw_only=True)
class MergeLastPairs(tr.Method, register=False):
    """After one block of the encoder, the last patches of a picture are merged in pairs; a pair counts twice from then on.

    Where a token has several patches, it is the tokens, patch by patch, and after the last block: most such towers rotate rows
    by their places, so that two equal rows are no longer a row that counts twice.
    """

    name = "merge_last_pairs"
    title = "merge in the encoder"
    stages = ("encoder",)

    def plan(self, facts: tr.ModelFacts) -> tuple[tr.Step, ...]:
        block = BLOCK if facts.patches_per_token == 1 else facts.feature_block
        return (tr.Step("encoder", block, when="after", proportional=True),)

    def is_identity(self, n: int) -> bool:
        return False

    def reduce(self, tokens: tr.VisualTokens) -> tr.Reduction:
        batch, n = tokens.features.shape[:2]
        alone = n - 2 * PAIRS
        rows = torch.arange(n)
        assign = torch.where(rows < alone, rows, alone + (rows - alone) // 2)
        source = torch.cat([rows[:alone], rows[alone::2]])
        return tr.Reduction.merge(assign.expand(batch, n), source.expand(batch, -1), weight=tokens.size)


@dataclass(frozen=True, kw_only=True)
class ForgetEveryOther(tr.Method, register=False):
    """From decoder layer ``layer`` on, the cache keeps every other token of a picture."""

    name = "forget_every_other"
    title = "trim the cache"
    stages = ("cache",)
    layer: int = 1

    def plan(self, facts: tr.ModelFacts) -> tuple[tr.Step, ...]:
        return (tr.Step("cache", layer=self.layer),)

    def reduce(self, tokens: tr.VisualTokens) -> tr.Reduction:
        score = (torch.arange(tokens.num_tokens) % 2).float().expand(len(tokens.features), -1)
        return tr.Reduction.top(score, self.budget.count(tokens.num_tokens))


@dataclass(frozen=True, kw_only=True)
class ReadEveryOther(tr.Method, register=False):
    """What is written reads, in decoder layer ``layer`` and later ones, every other entry of a picture, the second one first."""

    name = "read_every_other"
    title = "read a part of the cache"
    stages = ("decode",)
    layer: int = 1

    def plan(self, facts: tr.ModelFacts) -> tuple[tr.Step, ...]:
        return (tr.Step("decode", layer=self.layer),)

    def most(self, n: int) -> int:
        return n

    def reduce(self, tokens: tr.VisualTokens) -> tr.Reduction:
        odd = torch.arange(1, tokens.num_tokens, 2).expand(len(tokens.features), -1)
        return tr.Reduction.select(odd, tokens.num_tokens)


def unread(trace: tr.Trace, samples: list[Columns], length: int, layer: int = ReadEveryOther.layer) -> list[Columns]:
    """``samples`` whose written columns, behind the ``length`` of the prompt, read every other entry from ``layer`` on."""
    found = []
    for sample, columns in enumerate(samples):
        gone = [image.columns[::2] for image in trace.images if image.sample == sample]
        blind = torch.cat(gone) if gone else None
        found.append(replace(columns, forgotten=blind, forgotten_from=layer, written=length))
    return found


STAGES = ("pixels", "encoder", "projector", "llm", "cache", "decode")


def methods(key: str) -> dict[str, tr.Method]:
    """A method of each stage, for the tiny family ``key``."""
    family = tiny_models.KNOWN[key]
    return {
        "pixels": tr.Uniform(keep=0.4, at="pixels"),
        "encoder": MergeLastPairs(),
        "projector": tr.HiPrune(keep=0.4) if family.listens else tr.Uniform(keep=0.4),
        "llm": tr.FastV(keep=0.4, layer=family.layer),
        "cache": ForgetEveryOther(keep=0.5),
        "decode": ReadEveryOther(keep=0.5),
    }


def left(trace: tr.Trace, mask: Tensor, length: int) -> list[Columns]:
    """What a prompt of ``length`` columns was cut down to, one row of ``mask`` (B, L') per sample; the rest was written."""
    visual = torch.zeros_like(mask, dtype=torch.bool)
    visual[:, :length] = trace.visual
    text = [row.nonzero()[:, 0] for row in mask.bool() & ~visual]
    every = [row.nonzero()[:, 0] for row in mask.bool()]
    entered = any(image.reached(-1) is not None for image in trace.images)
    found = []
    for sample, words in enumerate(text):
        at = {k: torch.cat([words, kept[sample]]).sort().values for k, kept in trace.kept_at.items()}
        first = torch.cat([words, trace.kept[sample]]).sort().values if entered else every[sample]
        trimmed = [(own, own.stages[-1]) for own in trace.images if own.sample == sample and own.stages]
        trimmed = [(image, stage) for image, stage in trimmed if stage.stage == "cache"]
        gone = [image.columns[~torch.isin(image.columns, stage.seats)] for image, stage in trimmed]
        layer = trimmed[0][1].layer or 0 if trimmed else 0
        found.append(Columns(first, at, torch.cat(gone) if gone else None, layer, length))
    return found


@contextmanager
def merged_tower(model: Any, trace: tr.Trace) -> Iterator[None]:
    """The bare ``model`` with both patches of a pair at their mean: two equal rows are what a token that counts twice is.

    ``trace`` tells the block, and how many tokens each picture has.
    """
    tower = model.base_model.get_encoder(modality="image")
    depth = tower.config.num_hidden_layers if hasattr(tower.config, "num_hidden_layers") else tower.config.depth
    blocks = next(m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)
    block = next(stage.layer or 0 for image in trace.images for stage in image.stages)
    tokens = [image.layout.num_tokens for image in trace.images]
    beside = getattr(tower, "deepstack_merger_list", ())  # features of earlier blocks, a row per token

    def merge(module: nn.Module, args: tuple, out: Any) -> Any:
        rows = out[0] if isinstance(out, tuple) else out
        rows = paired(rows, of_tokens(rows, tokens))
        return (rows, *out[1:]) if isinstance(out, tuple) else rows

    # before the hooks by which transformers records hidden states
    with hooked(*(module.register_forward_hook(merge, prepend=True) for module in (blocks[block], *beside))):
        yield


def of_tokens(rows: Tensor, tokens: list[int]) -> list[Tensor]:
    """Of each picture among ``rows``, packed (N, D) or one per view (B, N, D), the rows of each of its tokens, (T, p)."""
    if rows.ndim == 2:
        every = torch.arange(len(rows)).view(sum(tokens), -1)
        return list(every.split(tokens))
    each = sum(tokens) // len(rows)
    side, prefix = math.isqrt(rows.shape[1] // each), rows.shape[1] % each
    if side == 1:
        return [torch.arange(rows.shape[1])[:, None]]
    grid = math.isqrt(each)
    squares = torch.arange(prefix, rows.shape[1]).view(grid, side, grid, side).transpose(1, 2)
    return [squares.reshape(each, -1)]


def paired(rows: Tensor, pictures: list[Tensor]) -> Tensor:
    """``rows`` (.., N, D) with the last tokens of each picture averaged in pairs, patch by patch."""
    rows = rows.clone()
    for picture in pictures:
        pairs = picture[-2 * PAIRS :].view(PAIRS, 2, -1)
        rows[..., pairs, :] = rows[..., pairs, :].mean(-3, keepdim=True).expand(*rows.shape[:-2], *pairs.shape, -1)
    return rows
