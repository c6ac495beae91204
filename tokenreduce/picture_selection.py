"""A method asked about one picture by itself, outside of any model: how many of its tokens stay, and which."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenreduce.groups import Image, ImageGroup, group_images
from tokenreduce.layout import Layout, PixelUnit
from tokenreduce.learned_method import LearnedMethod
from tokenreduce.method import Method
from tokenreduce.model_facts import ModelFacts
from tokenreduce.pipeline import Pipeline, acts
from tokenreduce.projection import Projector
from tokenreduce.reduction import Reduction
from tokenreduce.registry import make
from tokenreduce.signals import Signal, block_of
from tokenreduce.step_checks import check_method
from tokenreduce.tokens import STAGES

#: what a method is asked about first, which knows it by the places where it acts
USUAL = ModelFacts(
    family="usual",
    stages=STAGES,
    tower_depth=24,
    feature_block=22,
    has_cls=True,
    tower_prefix=1,
    tower_grid=(24, 24),
    pixel_unit=PixelUnit(1, 3, 1, 14, 14),
    decoder_depth=32,
    decoder_heads=32,
)

Sizes = Layout | Sequence[int]
Keep = float | int | None


class Reduced(NamedTuple):
    """Rows (K, D) left of a picture, the token (K,) long whose place and position id each has, and what came beside, (K, E)."""

    rows: Tensor
    place: Tensor
    beside: Tensor | None


class Selection:
    """The two functions of a method that a program needs which lays a prompt out before the vision tower has run, as servers
    do: ``count(sizes, budget)`` and ``keep_mask(features, sizes, budget)``. They agree, and depend on nothing else.

    ``sizes`` are (height, width) of an image's grid of tokens, (frames, height, width), or a ``Layout``, such as that of an image
    cut into tiles. ``budget`` is what ``keep`` is for ``tr.wrap``; None: the method's own.

    Args:
        method: a name (``tr.methods()``), a class or an instance, with ``parameters``.
        facts: of the model whose tower the method looks into; None: there are features alone.

    Attributes:
        needs: what the method looks at besides features, to be given as ``signals``.

    Errors: ``ValueError`` for a method that does not act behind the tower alone, whose counts follow from what a picture shows,
        or that looks at the text beside it; ``TypeError`` for unknown parameters.

    Example:
        >>> import torch, tokenreduce as tr
        >>> divprune = tr.selection("divprune", keep=0.25)
        >>> divprune.count((24, 24)), divprune.count((24, 24), 64)
        (144, 64)
        >>> int(divprune.keep_mask(torch.randn(576, 32), (24, 24), 64).sum())
        64
    """

    def __init__(
        self, method: str | Method | type[Method], *, facts: ModelFacts | None = None, **parameters: Any
    ) -> None:
        self.method = made = make(method, **parameters)
        if isinstance(made, LearnedMethod):
            raise ValueError(
                f"method={made.name!r} learns, and its weights belong beside the whole model; allowed where a prompt is laid out "
                "before its pictures are encoded: methods without weights"
            )
        self.facts = USUAL if facts is None else facts
        for step in made.plan(self.facts):
            if step.stage != "projector":
                raise ValueError(
                    f"method={made.name!r} acts at stage {step.stage!r}; allowed where a prompt is laid out before its pictures "
                    f"are encoded: methods of stage 'projector' alone. {WHY_NOT[step.stage]}"
                )
        ((_, step),) = Pipeline([made], self.facts).steps
        self.needs = step.needs
        spoken = next((need for need in self.needs if need.axis == "text"), None)
        if spoken is not None:
            raise ValueError(
                f"method={made.name!r} looks at the text of the prompt; allowed: methods that look at the picture alone, whose "
                "tokens are then the same in every prompt"
            )
        inside = next((need for need in self.needs if block_of(need) is not None), None)
        if facts is None and inside is not None:
            raise ValueError(
                f"method={made.name!r} looks into the vision tower; say which blocks there are, as facts=tr.ModelFacts(...), and "
                "pass signals={...} with a value of each of its `needs`; methods that look at features alone need neither"
            )
        self.at(None)

    def count(self, sizes: Sizes, budget: Keep = None) -> int:
        """How many tokens are left of a picture of ``sizes``: of nothing else, so that it is known before pixels are seen."""
        method, layout = self.at(budget), layout_of(sizes)
        n = layout.num_tokens
        if not n or layout.medium not in method.media or method.is_identity(n):
            return n
        k = method.budget.count(n)
        if method.most(n) != k:
            raise ValueError(
                f"method={method.name!r} leaves at most {method.most(n)} of {n} tokens with keep={method.keep!r}, how many "
                "follows from what the picture shows; allowed: a method, or parameters, that keep an exact count"
            )
        return max(k, method.always_left(layout))

    def keep_mask(
        self,
        features: Tensor,
        sizes: Sizes,
        budget: Keep = None,
        signals: Mapping[Signal, Tensor] | None = None,
    ) -> Tensor:
        """(N,) bool, the tokens of ``features`` (N, D) that are left; ``signals``: values of ``needs``, (N, ...) each.

        Errors: ``ValueError`` for another number of features, a signal that is missing, and a method that makes features of its
            own, by averaging, which no mask tells: ``reduced`` gives them.
        """
        group, done = self._run(features, sizes, budget, signals or {}, Projector.none())
        if any(plan.merges or plan.features is not None for plan in done):
            raise ValueError(
                f"method={self.method.name!r} joins tokens, which no mask tells; allowed: reduced(features, sizes, budget), "
                "which gives the rows that are left and where they sit"
            )
        return torch.zeros(len(features), dtype=torch.bool, device=features.device).index_fill(0, group.source[0], True)

    def reduced(
        self,
        features: Tensor,
        sizes: Sizes,
        budget: Keep = None,
        signals: Mapping[Signal, Tensor] | None = None,
        projector: Projector | None = None,
        beside: Tensor | None = None,
    ) -> Reduced:
        """What is left of ``features`` (N, D), selected or joined, and of what travels ``beside`` them (N, E), unseen.

        ``projector``: what makes features of rows such as those of the signal ``ProjectorInput``.
        """
        group, _ = self._run(features, sizes, budget, signals or {}, projector or Projector.none(), beside)
        assert group.features is not None
        return Reduced(
            group.features[0].to(features.dtype),
            group.place[0],
            None if beside is None else group.companions[0],  # type: ignore[index]
        )

    def at(self, budget: Keep) -> Method:
        """The method with another budget; None: its own. Errors are those of ``tr.wrap``."""
        method = self.method if budget is None else dataclasses.replace(self.method, keep=budget)
        check_method(method, self.facts)
        if method.keep is None or method.budget.adapts:
            raise ValueError(
                f"method={method.name!r}, keep={method.keep!r} keeps what each picture needs; allowed where a prompt is laid out "
                "before its pictures are encoded: a number that is known then, such as keep=0.25 or keep=64"
            )
        return method

    def _run(
        self,
        features: Tensor,
        sizes: Sizes,
        budget: Keep,
        signals: Mapping[Signal, Tensor],
        projector: Projector,
        beside: Tensor | None = None,
    ) -> tuple[ImageGroup, list[Reduction]]:
        layout, wanted = layout_of(sizes), self.count(sizes, budget)
        if features.ndim != 2 or len(features) != layout.num_tokens:
            raise ValueError(
                f"features of shape {tuple(features.shape)}; allowed: ({layout.num_tokens}, D), a row for each token of {sizes}"
            )
        pipeline = Pipeline([self.at(budget)], self.facts)
        (group,) = group_images([Image(0, torch.arange(len(features)), layout)], features.device)
        group.features = features[None]
        group.companions = None if beside is None else beside[None]
        missing = [need for need in self.needs if need not in signals]
        if missing and acts(pipeline.methods[0], group):
            raise ValueError(
                f"method={self.method.name!r} looks at {', '.join(map(str, missing))}; pass signals={{...}} with a value of each"
            )
        (group,), done, _ = pipeline.run("projector", None, [group], _Given(signals, projector))
        if group.num_tokens != wanted:
            raise ValueError(
                f"method={self.method.name!r} left {group.num_tokens} of {len(features)} tokens where {wanted} were counted on "
                "from sizes and budget; allowed: methods whose counts follow from these"
            )
        return group, done


#: by stage, what stands in the way of it
WHY_NOT = {
    "pixels": "What the pixels show decides there how many tokens a picture has.",
    "encoder": "The tower of a server is its own, and what is inside it is not hooked.",
    "llm": "A paged cache holds an entry for every token of a prompt in every layer.",
    "cache": "A paged cache holds an entry for every token of a prompt in every layer.",
    "decode": "What a paged cache is read for is decided by the server's own kernels.",
}


class _Given:
    """Signals that were passed in."""

    def __init__(self, signals: Mapping[Signal, Tensor], projector: Projector) -> None:
        self.signals = signals
        self.project = projector

    def look(self, signal: Signal, group: ImageGroup) -> Any:
        return self.signals[signal][None]

    def projector(self, group: ImageGroup) -> Projector:
        return self.project


def layout_of(sizes: Sizes) -> Layout:
    """(height, width), (frames, height, width), or a ``Layout``, which it then is.

    Errors: ``ValueError`` for other numbers.
    """
    if isinstance(sizes, Layout):
        return sizes
    given = [int(x) for x in sizes]
    if len(given) not in (2, 3) or min(given) < 1:
        raise ValueError(
            f"sizes={sizes!r}; allowed: (height, width) or (frames, height, width) of the grid of tokens, each at least 1, or a "
            "tr.Layout"
        )
    return Layout(given[-2], given[-1], frames=given[0] if len(given) == 3 else 1)


def selection(method: str | Method | type[Method], *, facts: ModelFacts | None = None, **parameters: Any) -> Selection:
    """``Selection`` of a method by its name, as ``tr.selection("divprune", keep=0.25)``."""
    return Selection(method, facts=facts, **parameters)
