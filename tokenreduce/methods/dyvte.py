"""DyVTE: after the first decoder layer whose gate says so, by the text alone, all visual tokens leave the language model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenreduce.budgets import Budget
from tokenreduce.exit_labels import can_leave
from tokenreduce.learned_method import LearnedMethod
from tokenreduce.learned_module import Learned
from tokenreduce.method import Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.signals import Hidden, Text
from tokenreduce.tokens import Rows, VisualTokens
from tokenreduce.training_step import TrainingStep
from tokenreduce.validation import in_range, whole

TEXT = Text("end", Hidden())
HALF = 0.5  # where neither gates nor a budget say when


class Depth(NamedTuple):
    """Decoder layers: how many there are, the last one in front of which tokens can leave, and channels of a token."""

    layers: int
    last: int
    width: int


class Gates(nn.Module):
    """A gate for each decoder layer: (B, 2 * width) -> (B, 2), for staying and for leaving."""

    def __init__(self, layers: int, width: int, hidden: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, 2, bias=False))
            for _ in range(layers)
        )
        for parameter in self.parameters():
            nn.init.xavier_uniform_(parameter)


@dataclass(frozen=True, kw_only=True)
class DyVTE(LearnedMethod):
    """Behind each decoder layer a gate reads the text behind the pictures, the mean of all but its last token and that token;
    at the first that says so, all visual tokens leave. Without weights they leave after a layer that is the same for all.

    Attributes:
        keep: visual tokens that a decoder layer takes in, on average over the layers, as a fraction or a count per image: whole
            layers, to the nearest. With weights, tokens leave there at the latest; None: when a gate says so. Without, None: 0.5.
        fixed_layer: the layer (0-based) after which they leave, in place of ``keep`` and weights.
        bias: added to the logit for leaving; above 0 tokens leave earlier.
        hidden: width of a gate; None: as the weights say, 2048 for new ones.

    Source: Wu et al., "Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit and the Empirical Findings",
        NeurIPS 2025, arXiv 2411.19628.
    Departures from the release: any batch, each sample leaving by itself; several pictures leave together; gates are asked in
        the prompt only; a single token of text is its own mean; without text behind the pictures nothing leaves.
    """

    name = "dyvte"
    title = "all visual tokens leave after a layer that a gate chooses"
    paper = "arXiv 2411.19628"
    stages = ("llm",)
    looks_at = "text behind the pictures, every decoder layer"
    counts_at = "layers"
    shaped_by = MappingProxyType({"hidden": 2048})  # as published

    keep: float | int | str | None = None
    fixed_layer: int | None = None
    bias: float = 0.0
    hidden: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("fixed_layer", self.fixed_layer, 0, ", the last layer that sees the picture", none=True)
        whole("hidden", self.hidden, 1, ". The paper uses 2048.", none=True)
        in_range("bias", self.bias, -1e6, 1e6)
        if self.fixed_layer is not None and not (self.keep is None and self.weights is None):
            raise ValueError(
                f"fixed_layer={self.fixed_layer} beside keep={self.keep!r}, weights={self.weights!r}; allowed: one that says "
                "when tokens leave, or keep beside weights"
            )

    @property
    def budget(self) -> Budget:
        return Budget(HALF if self.keep is None else self.keep)

    def is_identity(self, n: int) -> bool:
        return self.budget.is_full

    def most(self, n: int) -> int:
        return n  # all stay, or none

    def module(self, facts: ModelFacts) -> nn.Module:
        return Gates(facts.decoder_depth, facts.decoder_width, self.shape["hidden"])

    def learned(self, facts: ModelFacts) -> Learned | None:
        return None if self.weights is None else super().learned(facts)

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        return (
            () if self.weights is not None else ("tokens leaving after the same layer for every prompt, not by gates",)
        )

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        layers = facts.decoder_depth
        last = layers - 1 if facts.shared_from is None else min(layers - 1, facts.shared_from)
        if self.fixed_layer is not None and self.fixed_layer >= layers - 1:
            raise ValueError(
                f"fixed_layer={self.fixed_layer} of a language model of {layers} layers; allowed: 0 to {layers - 2}, layers that "
                "another follows"
            )
        depth = Depth(layers, last, facts.decoder_width)
        if isinstance(self.budget.keep, float):
            self.seen_by(depth, 1)
        needs = () if self.weights is None else (TEXT,)
        return tuple(Step("llm", layer=layer, needs=needs, amount=depth) for layer in range(1, last + 1))

    def seen_by(self, depth: Depth, n: int) -> int:
        """How many layers see an image of ``n`` tokens, at the most.

        Errors: ``ValueError`` where no token can leave so late.
        """
        if self.fixed_layer is not None:
            count = self.fixed_layer + 1
        elif self.keep is None and self.weights is not None:
            return depth.layers
        else:
            keep = self.budget.keep
            assert not isinstance(keep, str), "refused when it is given"
            share = keep if isinstance(keep, float) else min(1.0, keep / n)
            count = max(1, round(share * depth.layers))
        if depth.last < count < depth.layers:
            raise ValueError(
                f"keep={self.keep!r}, fixed_layer={self.fixed_layer!r} lets tokens leave after {count} layers of "
                f"{depth.layers}, but layers later than {depth.last} attend to keys of earlier ones; allowed: at most "
                f"{depth.last} layers, or keep=1.0"
            )
        return count

    def reduce(self, tokens: VisualTokens) -> Reduction:
        assert tokens.layer is not None, "every step names a layer"
        batch, n = tokens.features.shape[:2]
        if tokens.layer >= self.seen_by(tokens.amount, tokens.entered):
            return self._without(batch, n, tokens.features.device)
        if tokens.learned is None:
            return Reduction.identity(tokens)
        text = heard(tokens)
        gate = tokens.learned.part(f"gates.{tokens.layer - 1}", tokens.features)
        leave = leaves(gate_logits(gate, gate_input(text)), self.bias) & text.valid.any(dim=1)
        if not bool(leave.any()):
            return Reduction.identity(tokens)
        if bool(leave.all()):
            return self._without(batch, n, leave.device)
        return Reduction.where(~leave[:, None].expand(batch, n), positions=self.positions)

    def lesson(self, step: TrainingStep) -> Tensor:
        """Cross-entropy of one gate, drawn for this step, with whether tokens can leave behind its layer (paper, training)."""
        step = step.answered()
        assert step.labels is not None
        leaving = Leaving(
            drawn=int(torch.randint(self.plan(step.facts)[0].amount.last, (), generator=step.generator)), like=self
        )
        with torch.no_grad():
            label = can_leave(step.logits(tr_keep=None), step.logits(tr_method=leaving), step.labels).long()
        if not leaving.read:
            raise ValueError(
                f"no prompt of step {step.number} has text between its pictures and its answer, which gates read; allowed: "
                "data in which a question follows the pictures"
            )
        samples, own = zip(*sorted(leaving.read.items()))
        gate = step.learned.part(f"gates.{leaving.drawn}", own[0])
        return F.cross_entropy(gate_logits(gate, torch.stack(own)), label[list(samples)], reduction="none")

    def _without(self, batch: int, n: int, device: torch.device) -> Reduction:
        nothing = torch.empty(batch, 0, dtype=torch.long, device=device)
        return Reduction.select(nothing, n, positions=self.positions)


@dataclass(frozen=True, kw_only=True)
class Leaving(DyVTE, register=False):
    """While gates are trained: tokens leave behind the layer ``drawn``, and what its gate would have read, (2D,), is told by
    sample in ``read``. ``like``: the method that trains."""

    drawn: int
    like: DyVTE
    read: dict[int, Tensor] = field(default_factory=dict)

    def learned(self, facts: ModelFacts) -> Learned | None:
        return None

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return self.like.plan(facts)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        if tokens.layer != self.drawn + 1:
            return Reduction.identity(tokens)
        text = heard(tokens)
        assert tokens.sample is not None, "inside the language model they are known"
        for sample, x, any_text in zip(tokens.sample.tolist(), gate_input(text), text.valid.any(dim=1)):
            if any_text:
                self.read[sample] = x
        batch, n = tokens.features.shape[:2]
        return self._without(batch, n, tokens.features.device)


def heard(tokens: VisualTokens) -> Rows:
    """The text that gates read. Errors: ``ValueError`` where a token has several states."""
    text: Rows = tokens.signal(TEXT)
    width, found = tokens.amount.width, text.features.shape[2]
    if found != width:
        raise ValueError(
            f"method='dyvte': inside this language model tokens have {found // width} states of {width} channels each, and gates "
            "read one; allowed with this model: no weights, and keep or fixed_layer to say when"
        )
    return text


def gate_input(text: Rows) -> Tensor:
    """(B, 2D) float32: mean of all rows of ``text`` but the last, and the last, which stands for both where it is alone."""
    count = text.valid.sum(dim=1, keepdim=True)
    is_last = torch.arange(text.valid.shape[1], device=count.device) == count - 1
    last = replace(text, valid=is_last).mean()
    before = replace(text, valid=text.valid & ~is_last).mean()
    return torch.cat([torch.where(count > 1, before, last), last], dim=1)


def gate_logits(gate: nn.Module, x: Tensor) -> Tensor:
    """(B, 2) float32, whatever dtype the weights have: nearly equal logits decide."""
    first, second = (parameter.float() for parameter in gate.parameters())
    return F.linear(F.gelu(F.linear(x, first)), second)


def leaves(logits: Tensor, bias: float) -> Tensor:
    """(B,) bool: whether the logit for leaving is the larger one; ties stay."""
    return logits[:, 1] + bias > logits[:, 0]
