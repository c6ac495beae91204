"""What a block of a wrapped tower does beside its own work, in operations counted."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from encoder_models import transformers_model
from torch.utils._python_dispatch import TorchDispatchMode

import tokenreduce as tr


class Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["tome", "pitome"])
@torch.inference_mode()
def test_a_block_averages_its_rows_once(method):
    """Signals are averaged along with the rows only where another step of the block is to see them."""
    model, x = transformers_model("dinov2"), torch.randn(1, 3, 32, 32)
    with tr.wrapped(model, method, keep=0.5):
        model(x)  # looks at how each block adds, too
        with Counted() as counted:
            model(x)
        merging = sum(n > 0 for n in merged(tr.report(model)))
    assert merging > 1
    assert sum(n for name, n in counted.calls.items() if "embedding_bag" in name) == merging


def merged(report) -> list[int]:
    """Tokens that each block merges."""
    entered = [tokens[0] for tokens in report.tokens_at_layer] + [report.tokens_kept[0][0]]
    return [before - after for before, after in pairwise(entered)]
