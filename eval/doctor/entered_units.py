"""The reference for the stage before the tower: the bare tower, block by block, on rows that are really fewer.

Shares no code with the hooks. While ``shortened`` lasts, a bare model runs as ever, but what each of its vision blocks returns
is taken from a run of that block's forward on the rows that entered, alone: each image of a batch by itself, a packed sequence
sliced and its segments counted anew. Rows that did not enter come out as a large number, so that nothing may depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

import tokenreduce as tr

GONE = 7.0


@contextmanager
def shortened(model: Any, trace: tr.Trace) -> Iterator[None]:
    """The unwrapped ``model``, as if its towers were handed what the images of ``trace`` say entered them."""
    seen = (
        [image for image in trace.images if image.layout.frames == 1],
        [image for image in trace.images if image.layout.frames > 1],
    )
    passes = cycle([images for images in seen if images])  # packed towers run images, then videos, each time
    tower = model.base_model.get_encoder(modality="image")
    blocks = blocks_of(tower)
    state: dict[str, Any] = {}

    def begin(module: Any, args: Any, kwargs: dict) -> None:
        if "grid_thw" in kwargs:
            images = next(passes)
            state["rows"], state["borders"] = packed(tower, kwargs["grid_thw"].tolist(), images)
        else:
            state["rows"] = batched(tower, trace.images)

    def enter(module: Any, args: Any, kwargs: dict) -> None:
        packs, x = state.get("borders"), args[0]
        state["x"] = [x[..., rows, :] if packs else x[i : i + 1, rows] for i, rows in enumerate(state["rows"])]

    def leave(index: int, module: Any, args: Any, kwargs: dict, output: Any) -> Any:
        whole, found = args[0].shape, []
        for x, rows in zip(state["x"], state["rows"]):
            own = {name: sliced(value, rows, whole[-2]) for name, value in kwargs.items() if "seqlen" not in name}
            if state.get("borders"):
                own["cu_seqlens"] = torch.tensor(state["borders"][index], dtype=torch.int32)
            found.append(first_of(module.forward(x, *(sliced(value, rows, whole[-2]) for value in args[1:]), **own)))
        state["x"] = found
        wide = torch.full(whole, GONE)
        for i, (x, rows) in enumerate(zip(found, state["rows"])):
            if state.get("borders"):
                wide[..., rows, :] = x
            else:
                wide[i, rows] = x[0]
        return (wide, *output[1:]) if isinstance(output, tuple) else wide

    handles = [
        tower.register_forward_pre_hook(begin, with_kwargs=True),
        blocks[0].register_forward_pre_hook(enter, with_kwargs=True),
    ]
    handles += [
        b.register_forward_hook(partial(leave, i), with_kwargs=True, prepend=True) for i, b in enumerate(blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def blocks_of(tower: Any) -> Any:
    for holder in (
        tower,
        getattr(tower, "encoder", None),
        getattr(getattr(tower, "vision_model", None), "encoder", None),
    ):
        for name in ("blocks", "layers", "layer"):
            if hasattr(holder, name):
                return getattr(holder, name)
    raise AssertionError("no blocks")


def first_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def sliced(value: Any, rows: Tensor, whole: int) -> Any:
    if isinstance(value, tuple):
        return tuple(sliced(part, rows, whole) for part in value)
    return value[..., rows, :] if isinstance(value, Tensor) and value.ndim > 1 and value.shape[-2] == whole else value


def packed(tower: Any, grids: list[list[int]], images: list) -> tuple[list[Tensor], dict[int, list[int]]]:
    """The rows of a packed sequence that enter, and the borders of segments in each block, window by window where it has any."""
    unit = tower.spatial_merge_size
    side = tower.window_size // unit // tower.patch_size if hasattr(tower, "window_size") else 0
    full = set(getattr(tower, "fullatt_block_indexes", range(len(tower.blocks))))
    kept = [set(image.kept(-1).tolist()) for image in images]
    places = []  # of each unit of the sequence: its segment in full blocks, its segment in windows, whether it enters
    for number, (t, h, w) in enumerate(grids):
        h, w = h // unit, w // unit
        for frame in range(t):
            own = [(number, frame, *((r // side, c // side) if side else ()), r, c) for r in range(h) for c in range(w)]
            for *segment, r, c in sorted(own):  # windows in raster order, and units within each
                places.append((tuple(segment[:2]), tuple(segment), frame * h * w + r * w + c in kept[number]))
    rows = [u * unit**2 + p for u, (_, _, enters) in enumerate(places) if enters for p in range(unit**2)]
    borders = {}
    for index in range(len(tower.blocks)):
        names = [place[0 if index in full else 1] for place in places if place[2]]
        counts: dict[Any, int] = {}
        for name in names:
            counts[name] = counts.get(name, 0) + unit**2
        borders[index] = [0, *torch.tensor(list(counts.values())).cumsum(0).tolist()]
    return [torch.tensor(rows)], borders


def batched(tower: Any, images: list) -> list[Tensor]:
    """The rows of each row of a tower's batch that enter; those in front of the patches and those of no token always do."""
    convolution = next(m for m in tower.modules() if isinstance(m, torch.nn.Conv2d))
    side = tower.config.image_size
    side = (side if isinstance(side, int) else side[0]) // convolution.stride[0]
    prefix = sum(hasattr(m, "class_embedding") or hasattr(m, "cls_token") for m in tower.modules())
    found = []
    for image in images:
        views = image.layout.views or (image.layout,) * image.layout.frames
        kept, first = set(image.kept(-1).tolist()), 0
        gone = [cell for n, cell in enumerate(image.layout.patches) if n not in kept]
        for view in views:
            unit, area = side // view.width, view.height * view.width
            grid = torch.ones(view.height, view.width, dtype=torch.bool)
            for cell in gone:
                if first <= cell < first + area:
                    grid[(cell - first) // view.width, (cell - first) % view.width] = False
            patches = grid.repeat_interleave(unit, 0).repeat_interleave(unit, 1).flatten()
            found.append(torch.cat([torch.arange(prefix), prefix + patches.nonzero()[:, 0]]))
            first += area
    return found
