"""What a task's score is: which way is better, whether it is a share, how it comes from its questions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric of a task.

    ``name``: as in lmms-eval's results, ``exact_match``, or ``exact_match,strict`` behind a filter; ``aggregation``: the name
    of the function that makes the score of the questions' entries; ``share``: a mean of entries between 0 and 1, so that
    percent mean something.
    """

    name: str
    higher_is_better: bool = True
    aggregation: str = "mean"
    share: bool = False

    def gain(self, score: float, other: float) -> float:
        """How much better ``score`` is than ``other``, in the metric's own unit: positive is better, whichever way it runs."""
        return score - other if self.higher_is_better else other - score

    def kept(self, score: float, unreduced: float) -> float | None:
        """Share of the unreduced model's quality: ``score / unreduced``, or ``unreduced / score`` where lower is better.

        1 for two equal scores, zeros too. None where a ratio says nothing: a zero to divide by, or a negative score.
        """
        above, below = (score, unreduced) if self.higher_is_better else (unreduced, score)
        if above == below and above >= 0:
            return 1.0
        return above / below if below > 0 and above >= 0 else None
