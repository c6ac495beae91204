"""Pooled entries of a cache by plain loops: runs and their remainders, frames of unlike length, units of odd blocks."""

from __future__ import annotations

import pytest
import torch

from tokenreduce.bilevel_cache import mean_of_units, pooled, whole_blocks


@pytest.mark.parametrize("step", [1, 3, 4, 9])
def test_runs_of_a_frame_become_means_and_what_is_left_over_goes(step):
    generator = torch.Generator().manual_seed(step)
    frames = [[0] * 7 + [1] * 4 + [30] * 2, [0] * 2 + [1] * 1 + [2] * 10]  # one lost all its tokens, others are short
    frame = torch.tensor(frames)
    whole = torch.tensor([[f in stay for f in row] for row, stay in zip(frames, ({1}, set()))])
    x = torch.randn(2, 13, 5, generator=generator)
    plan = pooled(frame, whole, step)
    rows = plan.carry(x)
    for b, row in enumerate(frames):
        wanted = []
        for f in sorted(set(row)):
            own = [n for n, other in enumerate(row) if other == f]
            runs = [own[i : i + step] for i in range(0, len(own) - step + 1, step)] or [own]
            wanted += [x[b, n] for n in own] if whole[b, own[0]] else [x[b, run].mean(dim=0) for run in runs]
        valid = plan.valid[b]
        torch.testing.assert_close(rows[b][valid], torch.stack(wanted))


def blocks(frames, chunk, units):
    (found,) = whole_blocks(frames, chunk, torch.tensor([units], dtype=torch.long))
    return tuple(found.nonzero().flatten().tolist())


def test_blocks_of_units():
    assert blocks(24, 4, ()) == (0, 1, 2, 3, 4, 5)
    assert blocks(24, 4, (4, 99)) == (0, 2, 5)
    assert blocks(23, 5, (4,)) == (0, 1, 4)  # frames 8 and 9 of the block of frames 5 to 9
    assert blocks(23, 5, (2,)) == (0, 4)  # half in the next block: that of its first frame counts
    assert blocks(3, 4, (1,)) == (0,)


def test_units_that_have_lost_their_tokens_are_relevant_last():
    found = mean_of_units(torch.tensor([[1.0, 3.0, 5.0, 0.5]]), torch.tensor([[0, 1, 1, 4]]), 5)
    assert found.tolist() == [[3.0, -torch.inf, 0.5]]
