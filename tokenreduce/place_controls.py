"""What controls that choose by place alone have in common."""

from __future__ import annotations

from torch import Tensor

from tokenreduce.method import Method, ModelFacts, Step
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens


class ByPlace(Method, register=False):
    """Keep the K tokens whose place in the picture, or in each tile or frame, has the highest score; of equal ones the first."""

    stages = ("projector",)
    looks_at = "nothing"
    sees = "frame"

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        return (Step("projector"),)

    def place(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float."""
        raise NotImplementedError

    def reduce(self, tokens: VisualTokens) -> Reduction:
        return Reduction.top(self.place(tokens), self.budget.count(tokens.num_tokens), positions=self.positions)
