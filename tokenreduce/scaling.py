"""The baseline that acts on the picture: scaled down, so that a model of dynamic resolution makes fewer tokens by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from tokenreduce.budgets import Budget
from tokenreduce.picture_tokens import PictureTokens, Size

SHORTEST_SIDE = 8  # pixels; below it an aspect is no longer kept
STEP = 2**0.25  # between the lengths that are tried, largest first, before the interval in between is halved


class BudgetUnreachable(ValueError):
    """No size of a picture makes as few tokens as wanted."""


@dataclass(frozen=True)
class ScaledDown:
    """What became of a picture.

    Attributes:
        picture: scaled, or the one given where the budget is all of its tokens.
        tokens: visual tokens that the processor makes of it, at most ``budget``: sizes make tokens in steps.
        budget: how many were allowed.
        tokens_unscaled: how many it makes of the picture as it was.
    """

    picture: Image.Image
    tokens: int
    budget: int
    tokens_unscaled: int


def scaled_down(picture: Image.Image, keep: float | int, processor: Any) -> ScaledDown:
    """The largest picture of the same aspect of which ``processor`` makes no more visual tokens than the budget.

    Tokens are counted by calling the processor, and never computed here. Lengths of the longer side are tried from the
    picture's own downwards, and then in between, which finds the largest where counts grow with length; where tiles are chosen by
    aspect, rounding to whole pixels can make fewer of an isolated larger size, which is not looked for.

    Args:
        picture: one that will be alone in its prompt; some processors make fewer tokens of each of several.
        keep: fraction in (0, 1] of the tokens of the unscaled picture, or a count, as in ``tr.wrap``.
        processor: of the model, with the settings it will be called with.

    Returns:
        The picture with the number of tokens that was reached.

    Errors: ``BudgetUnreachable``, a ``ValueError``, where size makes no difference to the processor, or where even the
        smallest picture makes more; ``TypeError`` for another picture, processor or budget.

    Example: ``inputs = processor(text=text, images=tr.scaled_down(photo, 0.25, processor).picture, return_tensors="pt")``
    """
    return Scaling(processor, Budget(keep)).scale(picture)


class Scaling:
    """``scaled_down`` for many pictures: what a size makes, and becomes, is asked once.

    ``settings``: see ``PictureTokens``.
    """

    def __init__(self, processor: Any, budget: Budget, **settings: Any) -> None:
        if isinstance(budget.keep, str):
            raise ValueError(
                f"keep={budget.keep!r}; a picture does not choose; allowed: a fraction or a count, such as 0.25"
            )
        self.budget, self.tokens = budget, PictureTokens(processor, **settings)
        self._found: dict[tuple[Size, int], Size] = {}

    def scale(self, picture: Image.Image, whole: int | None = None) -> ScaledDown:
        """``scaled_down``; ``whole``: visual tokens of the unscaled picture, where a caller has sized it by other settings."""
        if not isinstance(picture, Image.Image):
            raise TypeError(
                f"picture is a {type(picture).__name__}; allowed: a PIL image, such as Image.open('cat.jpg')"
            )
        whole = self.tokens.count(picture.size) if whole is None else whole
        budget = self.budget.count(whole)
        if (picture.size, budget) not in self._found:
            fits = self.tokens.count(picture.size) <= budget
            self._found[picture.size, budget] = picture.size if fits else self._largest(picture.size, budget)
        size = self._found[picture.size, budget]
        if size != picture.size:
            picture = picture if picture.mode == "RGB" else picture.convert("RGB")
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        return ScaledDown(picture, self.tokens.count(size), budget, whole)

    def _largest(self, size: Size, budget: int) -> Size:
        longer, shorter = max(size), min(size)
        lowest = -(-longer * min(SHORTEST_SIDE, shorter) // shorter)

        def at(length: int) -> Size:
            width, height = (max(1, round(side * length / longer)) for side in size)
            return width, height

        over, length = longer, longer
        while length > lowest:
            length = max(min(int(length / STEP), length - 1), lowest)
            if self.tokens.count(at(length)) <= budget:
                break
            over = length
        else:
            self._refuse(size, at(lowest), budget)
        while over - length > 1:
            middle = (over + length) // 2
            if self.tokens.count(at(middle)) <= budget:
                length = middle
            else:
                over = middle
        return at(length)

    def _refuse(self, size: Size, smallest: Size, budget: int) -> None:
        whole, least, keep = self.tokens.count(size), self.tokens.count(smallest), self.budget.keep
        name, pool = type(self.tokens.processor).__name__, f'tr.wrap(model, "pool", keep={keep})'
        if least == whole:
            raise BudgetUnreachable(
                f"keep={keep} allows {budget} visual tokens, but {name} makes {whole} of this picture at every size, from "
                f"{_by(size)} down to {_by(smallest)} pixels: it resizes such a picture itself. Scaling down saves nothing "
                f"here; {pool} averages tokens inside the model instead"
            )
        raise BudgetUnreachable(
            f"keep={keep} allows {budget} of the {whole} visual tokens of a picture of {_by(size)} pixels, but {name} still "
            f"makes {least} of the smallest, {_by(smallest)}; allowed here: keep={least} or more, or lower bounds of the "
            f"processor (min_pixels, min_patches). {pool} reaches any count inside the model"
        )


def _by(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
