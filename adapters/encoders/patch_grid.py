"""Where the patches of a pass are: read off what the patch embedding makes, never off a configured image size."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokenreduce.layout import Layout
from tokenreduce.per_thread import PerThread


class PatchGrid:
    """Notes the patch grid of every pass of one tower.

    ``embedding`` is the convolution that makes the patches, or any module that returns (..., height, width); None, or a
    tower entered behind it: ``usual``, the grid of the configured image size.
    """

    seen = PerThread[list[Layout]](list)

    def __init__(self, embedding: nn.Module | None, usual: tuple[int, int] | None = None) -> None:
        self.embedding = embedding
        self.usual = usual

    def watch(self) -> list[Any]:
        """Handles of the hooks that note the grid."""
        return [] if self.embedding is None else [self.embedding.register_forward_hook(self.note)]

    def note(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.seen = [Layout(*output.shape[-2:])] * len(output)

    def layouts(self, batch: int, n: int) -> list[Layout]:
        """The layouts of the ``batch`` images of a pass that arrives with ``n`` patches each.

        Errors: ``ValueError`` when patches of the grid are missing.
        """
        seen, self.seen = self.seen, []
        if not seen and self.usual is not None and self.usual[0] * self.usual[1] == n:
            seen = [Layout(*self.usual)] * batch
        if not seen:
            return [Layout(1, n)] * batch
        if seen[0].num_tokens != n:
            raise ValueError(
                f"{n} patches arrive at the first block, of a grid of {seen[0].height} x {seen[0].width}: the model drops some "
                "before (patch dropout while training?), so none can be placed. Call model.eval() or set that dropout to 0"
            )
        return seen
