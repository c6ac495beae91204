"""Thresholds for DyMU, found on pictures: in every block the most alike pairs of a batch merge, and the next one sets it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenreduce.attachment import attachment_of, is_wrapped
from tokenreduce.calibration import Calibration, Tower
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.schedules import STAIRCASES, fit, needs_encoder, staircase
from tokenreduce.signals import Keys
from tokenreduce.threshold_merging import best_of_all, candidates
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice, whole
from tokenreduce.wrapping import wrapped

if TYPE_CHECKING:
    from torch import nn

CAME = "came"  # the tokens of a view that arrived at the first block


@dataclass
class RunningMean:
    """The mean of what was added, in double precision."""

    value: float = 1.0
    count: int = 0

    def add(self, new: float) -> None:
        self.value = (self.value * self.count + new) / (self.count + 1)
        self.count += 1


@dataclass
class Found:
    """What a search has noted: a mean of thresholds per block, views that came, and tokens left of them in the last block."""

    means: dict[int, RunningMean] = field(default_factory=dict)
    views: int = 0
    left: int = 0


@dataclass(frozen=True, kw_only=True)
class ThresholdSearch(Method, register=False):
    """Merges, in every block, the most alike pairs of all views of a pass together, as many per view as ``keep`` and
    ``schedule`` say on average, at most ``max_r`` of one; notes the likeness of the best pair that stays apart."""

    name = "dymu"
    title = "find thresholds"
    stages = ("encoder",)
    sees = "frame"

    schedule: str = "constant"
    max_r: int | None = None
    found: Found = field(default_factory=Found)

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("schedule", self.schedule, STAIRCASES)
        whole("max_r", self.max_r, 1, ", tokens that merge in a block", none=True)

    def is_identity(self, n: int) -> bool:
        return False

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        needs_encoder(self.name, facts)
        depth = facts.feature_block + 1
        return tuple(
            Step("encoder", layer=block, needs=(Keys(block),), amount=depth, proportional=True)
            for block in range(depth)
        )

    def merges(self, n: int, depth: int, block: int) -> int:
        """Merges in ``block`` of ``depth`` on average, of a view of ``n`` tokens: as scheduled, where a block can do as many."""
        k = self.budget.count(n)
        return fit(staircase(n - k, depth, self.schedule), n, k)[block]

    def checked_together(self, groups: Sequence[VisualTokens]) -> list[Reduction]:
        block, depth = groups[0].layer or 0, groups[0].amount
        pairs = [candidates(tokens.signal(Keys(block)), tokens.prefix, tokens.window) for tokens in groups]
        scores, notes, total = [], [], 0
        for tokens, found in zip(groups, pairs):
            views, n = len(tokens.features), tokens.num_tokens - tokens.prefix
            came = int(tokens.notes[CAME][0]) if CAME in tokens.notes else n
            r = min(self.merges(came, depth, block), n // 2)
            notes.append({CAME: torch.full((views,), came, device=tokens.features.device)})
            score = tokens.features.new_full((views, 0), 0.0) if found is None else found.score
            if self.max_r is not None:
                score = score.index_fill(1, torch.arange(self.max_r, score.shape[1], device=score.device), -torch.inf)
            scores.append(score.float())
            total += views * r
        counts, threshold = best_of_all(scores, total)
        self.found.means.setdefault(block, RunningMean()).add(threshold)
        if block == depth - 1:
            self.found.views += sum(len(tokens.features) for tokens in groups)
            merged = sum(int(count.sum()) for count in counts)
            self.found.left += sum((t.num_tokens - t.prefix) * len(t.features) for t in groups) - merged
        return [
            replace(
                Reduction.identity(tokens) if found is None else found.merge(count, tokens.size, "batch"), notes=note
            ).check(tokens, values=False)
            for tokens, found, count, note in zip(groups, pairs, counts, notes)
        ]


class _Encoded(Exception):
    """Raised where the language model would begin: the tower has run."""


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    keep: float | int,
    schedule: str = "constant",
    max_r: int | None = None,
) -> Calibration:
    """Thresholds per block with which the vision tower of ``model`` leaves ``keep`` tokens on average (section 3.1 of DyMU).

    Batch by batch: in each block the r B most alike pairs of all B views merge, so that they end with different numbers of
    tokens; the threshold is the likeness of the best pair that stays apart, averaged over batches in double precision. Nothing
    behind the tower runs. Larger batches tell single pictures apart better; the release takes 64.

    Args:
        model: a vision-language model, or an encoder by itself, not wrapped, in evaluation mode.
        batches: what the model is called with, one after the other: inputs of a processor, or a tensor. Of a
            vision-language model, prompts with one picture each are what it will see later, too.
        keep: mean number of tokens, a fraction, or a count of each view that the tower runs (an image or one of its tiles).
        schedule: how merges are spread over the blocks: ``constant``, ``linear`` falling, or ``reverse_linear``; a block that
            cannot merge as many leaves them to others.
        max_r: most tokens of one view that merge in a block.

    Returns:
        ``Calibration``, for ``tr.DyMU(calibration=...)``; ``save(path)`` writes it.

    Errors: ``ValueError`` for a wrapped or training model, a tower that cannot merge, and where no batch brought a picture.

    Source: Wang et al., "DyMU", NeurIPS 2025, arXiv 2504.17040. The release keeps running means in the precision of the model.
    """
    if is_wrapped(model):
        raise ValueError("model is wrapped; call tr.unwrap(model) first, thresholds are found on the model as it is")
    if model.training:
        raise ValueError("model is in training mode, in which dropout decides, too; call model.eval() first")
    search = ThresholdSearch(keep=keep, schedule=schedule, max_r=max_r)
    digest, largest, dtype = hashlib.sha256(), 0, ""
    with wrapped(model, search), torch.no_grad():
        attachment = attachment_of(model)
        decoder = getattr(attachment.family, "decoder", None)
        handle = None if decoder is None else decoder.register_forward_pre_hook(_stop, prepend=True)
        try:
            for batch in batches:
                before = search.found.views
                for pixels in _floats(batch):
                    digest.update(pixels.detach().float().cpu().contiguous().numpy().tobytes())
                    dtype = str(pixels.dtype).removeprefix("torch.")
                with suppress(_Encoded):
                    model(**batch) if isinstance(batch, Mapping) else model(batch)
                largest = max(largest, search.found.views - before)
        finally:
            if handle is not None:
                handle.remove()
        tower, depth = Tower.of(attachment.facts), attachment.facts.feature_block + 1
    found = search.found
    if not found.views:
        raise ValueError(
            "batches brought no picture to the vision tower; allowed: at least one, prompts with pixel values"
        )
    values = [found.means[block].value if block in found.means else 1.0 for block in range(depth)]
    return Calibration(
        thresholds=tuple(values),
        tower=tower,
        keep=keep,
        schedule=schedule,
        views=found.views,
        kept=found.left / found.views,
        corpus=digest.hexdigest(),
        batch=largest,
        dtype=dtype,
    )


def _stop(*_: Any) -> None:
    raise _Encoded


def _floats(batch: Any) -> list[Tensor]:
    given = batch.values() if isinstance(batch, Mapping) else [batch]
    return [value for value in given if isinstance(value, Tensor) and value.is_floating_point()]
