"""Pictures scaled down on their way into the processor of a model of lmms-eval; what the whole ones cost is kept beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tokenreduce.adapters.upstream.processors import placeholders, scaled_call, sized_before
from tokenreduce.budgets import Budget
from tokenreduce.downscale import Downscale
from tokenreduce.picture_tokens import PictureTokens
from tokenreduce.scaling import BudgetUnreachable, ScaledDown, Scaling

from .limits import check_fixed

PROCESSORS = ("processor", "_image_processor")  # what base models call theirs
COUNTED = ("min_patches", "max_patches", "min_pixels", "max_pixels")  # given with a call, what counts depend on


class ScalingProcessor:
    """A processor that is called with pictures scaled down to ``budget``; all else is passed on, videos too.

    Every prompt with pictures is processed twice, so that its unscaled length is exact, whatever a family writes around its
    tokens. ``problem``: what was raised at last; models of lmms-eval may swallow it.
    """

    def __init__(self, inner: Any, budget: Budget) -> None:
        self.inner, self._budget = inner, budget
        self._asked: dict[Any, tuple[PictureTokens, Scaling]] = {}
        self._last: tuple[Any, Mapping[str, Any]] | None = None
        self.problem: BudgetUnreachable | None = None

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> Any:
        if not images:
            self._last = None
            return self.inner(images=images, text=text, videos=videos, **kwargs)
        try:
            small = self._scaled(images, kwargs)
        except BudgetUnreachable as error:
            self.problem = error
            raise
        whole = made = self.inner(images=images, text=text, videos=videos, **kwargs)
        if any(one.tokens_unscaled > one.budget for one in small):
            given = {"images": [one.picture for one in small], "text": text, "videos": videos}
            made = self.inner(**given, **scaled_call(kwargs))
            self._check(made, sum(one.tokens for one in small), bool(videos))
        self._last = (made["input_ids"], whole)
        return made

    def _scaled(self, pictures: Any, arguments: Mapping[str, Any]) -> list[ScaledDown]:
        settings = {name: arguments[name] for name in COUNTED if name in arguments}
        sized = sized_before(arguments)
        key = (*sorted(settings.items()), *sized)
        if key not in self._asked:
            whole = PictureTokens(self.inner, **settings, **sized)
            self._asked[key] = whole, Scaling(self.inner, self._budget, **settings)
        counts, scaling = self._asked[key]
        return [scaling.scale(picture, counts.count(picture.size)) for picture in pictures]

    def _check(self, made: Mapping[str, Any], expected: int, filmed: bool) -> None:
        written = placeholders(self.inner, torch.as_tensor(made["input_ids"]).flatten().tolist())
        if written != expected and not filmed:
            self.problem = BudgetUnreachable(
                f"{type(self.inner).__name__} makes {written} visual tokens of the scaled pictures of a prompt, and {expected} "
                "of each alone: it treats pictures of a prompt by their number, and no budget can be kept. Take a task with a "
                "picture per question, or pool"
            )
            raise self.problem

    def unscaled(self, ids: Any) -> Mapping[str, Any] | None:
        """The inputs that the prompts ``ids`` (B, L), made by the last call, would have been; None for text alone."""
        if self._last is None:
            return None
        made, whole = self._last
        if ids is None or ids.shape != made.shape or not torch.equal(ids.cpu(), made.cpu()):
            raise ValueError(
                "generate() was not called with what the processor made last, so the cost of unscaled pictures is unknown; "
                "tr_base chooses another base model"
            )
        return whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def processor_name(lm: Any) -> str | None:
    """What the model ``lm`` of lmms-eval calls its processor; None where it shows none."""
    return next((name for name in PROCESSORS if hasattr(lm, name)), None)


def scale_pictures(lm: Any, wanted: Downscale | None) -> ScalingProcessor | None:
    """Let the processor of ``lm`` take pictures scaled down as ``wanted``, or as they are for None.

    Errors: ``ValueError`` where there is no processor, or one to which size makes no difference; pictures stay as they are.
    """
    name = processor_name(lm)
    held = None if name is None else getattr(lm, name)
    if name is not None and isinstance(held, ScalingProcessor):
        held = held.inner
        setattr(lm, name, held)
    if wanted is None:
        return None
    if name is None:
        raise ValueError(
            f"downscale needs the processor of the base model, and {type(lm).__mro__[2].__name__} shows none"
        )
    check_fixed(PictureTokens(held).fixed(), type(held).__name__, wanted.budget)
    scaling = ScalingProcessor(held, wanted.budget)
    setattr(lm, name, scaling)
    return scaling
