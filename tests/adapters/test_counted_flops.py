"""FLOPs of modules that are counted while they run: once per shape, in every mode that users run in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tokenreduce.adapters.hooks.counted_flops import CountedFlops


class Mixes(nn.Module):
    """A linear layer, then attention of its rows to each other: 2 x 8 x 8 per row, and 2 x 2 x 8 per pair."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, fails: bool = False) -> torch.Tensor:
        x = self.linear(x)
        if fails:
            raise RuntimeError("out of memory")
        return F.scaled_dot_product_attention(x, x, x)


@pytest.fixture
def watched():
    module, heard, handles = Mixes(), [], []
    CountedFlops(heard.append).attach(module, handles)
    yield module, heard
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_every_call_is_told_whatever_the_mode(watched, mode):
    module, heard = watched
    with mode():
        for n in (3, 3, 5):
            module(torch.ones(1, n, 8))
    assert heard == [2 * n * 8 * 8 + 4 * n * n * 8 for n in (3, 3, 5)]


def test_a_call_that_fails_tells_nothing(watched):
    module, heard = watched
    with pytest.raises(RuntimeError, match="memory"):
        module(torch.ones(1, 3, 8), fails=True)
    assert heard == []
    module(torch.ones(1, 3, 8))
    assert heard == [2 * 3 * 8 * 8 + 4 * 9 * 8]
