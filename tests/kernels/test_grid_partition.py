"""grid_partition: exactly k rectangles that tile the grid, for every k."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenreduce.kernels.grid_partition import grid_partition


def check(height: int, width: int, k: int) -> None:
    """Exactly k rectangles in raster order, cut evenly, each with its central cell."""
    region, centre = grid_partition(height, width, k)
    assert region.shape == (height * width,)
    assert centre.shape == (k,)
    cells: list[list[tuple[int, int]]] = [[] for _ in range(k)]
    for cell, r in enumerate(region.tolist()):
        cells[r].append(divmod(cell, width))
    bands: dict[int, list[int]] = {}
    first = []
    for r, own in enumerate(cells):
        assert own, f"region {r} is empty"
        rows, columns = sorted({y for y, _ in own}), sorted({x for _, x in own})
        assert len(own) == len(rows) * len(columns)
        assert rows[-1] - rows[0] + 1 == len(rows)
        assert columns[-1] - columns[0] + 1 == len(columns)
        assert int(centre[r]) == (rows[0] + rows[-1]) // 2 * width + (columns[0] + columns[-1]) // 2
        assert bands.setdefault(rows[0], [len(rows)])[0] == len(rows)
        bands[rows[0]].append(len(columns))
        first.append((rows[0], columns[0]))
    assert first == sorted(first)
    assert spread(heights[0] for heights in bands.values()) <= 1
    assert spread(len(segments) for segments in bands.values()) <= 1
    assert all(spread(segments[1:]) <= 1 for segments in bands.values())


def spread(numbers) -> int:
    numbers = list(numbers)
    return max(numbers) - min(numbers)


@pytest.mark.parametrize("height", range(1, 9))
def test_every_k_of_small_grids(height) -> None:
    for width in range(1, 9):
        for k in range(1, height * width + 1):
            check(height, width, k)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(height=st.integers(1, 40), width=st.integers(1, 40), part=st.floats(0, 1))
def test_large_grids(height, width, part) -> None:
    check(height, width, max(1, round(part * height * width)))


def test_regions_are_near_square() -> None:
    region, centre = grid_partition(24, 24, 16)
    assert region.bincount().tolist() == [36] * 16
    assert centre[:4].tolist() == [2 * 24 + 2, 2 * 24 + 8, 2 * 24 + 14, 2 * 24 + 20]
    for k in (9, 64, 144, 192):
        rows = region_shapes(24, 24, k)
        assert max(max(h / w, w / h) for h, w in rows) <= 2.0


def region_shapes(height: int, width: int, k: int) -> list[tuple[int, int]]:
    grid = grid_partition(height, width, k)[0].view(height, width)
    return [(int((grid == r).any(dim=1).sum()), int((grid == r).any(dim=0).sum())) for r in range(k)]


def test_one_region_and_all_cells() -> None:
    region, centre = grid_partition(5, 7, 1)
    assert (region == 0).all()
    assert centre.tolist() == [2 * 7 + 3]
    region, centre = grid_partition(5, 7, 35)
    assert torch.equal(region, torch.arange(35))
    assert torch.equal(centre, torch.arange(35))


@pytest.mark.parametrize("k", [0, -1, 13])
def test_impossible_k_is_refused(k) -> None:
    with pytest.raises(ValueError, match=rf"k={k} regions of a 3x4 grid; allowed: 1 to 12"):
        grid_partition(3, 4, k)
