"""What became of every visual token of one picture, and where it looks: a trace and a geometry joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenreduce.draw.geometry.boxes import cell_boxes, check_shape, tiles_of, view_boxes
from tokenreduce.draw.geometry.crops import Box
from tokenreduce.draw.stages import describe, images_of, stages_at

if TYPE_CHECKING:
    from tokenreduce.provenance import ImageTrace, PromptTrace


@dataclass(frozen=True)
class Panel:
    """Views that do not overlap, drawn over one copy of the picture: what they are, and the box of each."""

    label: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class ProvenanceMap:
    """The N tokens of one picture after some of its stages.

    Attributes:
        boxes: (N, 4) left, top, right, bottom in pixels of the original picture.
        frame, panel: (N,) frame and panel that each token belongs to.
        panels: what ``panel`` counts; more than one where a picture was seen whole and in tiles.
        owner: (N,) number of the survivor that stands for the token, -1 when it is gone.
        away: (N,) bool, tokens of a video whose survivor sits in another frame.
        unseen: (N,) bool, tokens whose pixels did not enter the vision tower, or did not pass through all of it.
        role: (N,) role of the token, 0 for none and for tokens that are gone; ``names`` by number.
        score: (N,) what tokens were ranked by, NaN for unranked ones; None where no stage ranked.
        kept: how many survivors there are, summary tokens included.
        text: how many tokens are left, in words.
    """

    boxes: np.ndarray
    frame: np.ndarray
    panel: np.ndarray
    panels: tuple[Panel, ...]
    owner: np.ndarray
    away: np.ndarray
    unseen: np.ndarray
    role: np.ndarray
    names: tuple[str, ...]
    score: np.ndarray | None
    kept: int
    text: str

    @property
    def merged(self) -> np.ndarray:
        """(N,) bool: tokens that share their survivor with others."""
        counts = np.bincount(self.owner[self.owner >= 0], minlength=int(self.owner.max(initial=0)) + 1)
        return (self.owner >= 0) & (counts[self.owner] > 1)


def provenance_map(
    trace: PromptTrace | ImageTrace,
    size: tuple[int, int],
    processor: Any = None,
    index: int = 0,
    step: int | None = None,
    layer: int | None = None,
) -> ProvenanceMap:
    """The tokens of picture ``index``, of ``size`` (width, height), after ``step`` stages or before ``layer`` runs.

    A picture that the processor cut into images of their own is put together again; ``index`` is the first of them.

    Errors: ``ValueError`` for an index, step or layer that the trace does not have, and, without a processor, for a picture of
        other proportions than its grid of tokens.
    """
    images = images_of(trace, index, tiles_of(size, processor))
    found: list[ProvenanceMap] = []
    for tile, image in enumerate(images):
        if processor is None:
            check_shape(size, image.layout)
        steps = stages_at(image, step, layer)
        owner, role, names, score = _after(image, steps)
        entered = [np.asarray(stage.assign) >= 0 for stage in image.stages[:steps] if stage.stage == "pixels"]
        unseen = ~entered[-1] if entered else np.zeros(image.tokens_in, dtype=bool)
        source = np.asarray(image.stages[steps - 1].source) if steps else np.arange(image.tokens_in)
        layout = image.layout
        boxes = view_boxes(size, processor, layout, tile if len(images) > 1 else 0)
        views = layout.views or (layout,)
        place = np.asarray(layout.patches, dtype=int)
        ends = np.cumsum([view.frames * view.height * view.width for view in views])
        view = np.searchsorted(ends, place, side="right")
        frame = np.zeros_like(place) if layout.views else place // (layout.height * layout.width)
        seat = np.append(source, -1)[owner]  # the token at whose place the survivor sits; owner -1 takes the last entry
        away = (seat >= 0) & (frame[seat.clip(0)] != frame)
        panels = tuple(Panel(f"{v.height} x {v.width}", (box,)) for v, box in zip(views, boxes))
        cells = cell_boxes(size, processor, layout, tile if len(images) > 1 else 0)
        text = describe(image, step=step, layer=layer)
        found.append(
            ProvenanceMap(cells, frame, view, panels, owner, away, unseen, role, names, score, len(source), text)
        )
    return _arranged(joined(found, describe(*images, step=step, layer=layer)))


def _after(image: ImageTrace, steps: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], np.ndarray | None]:
    """Owner, role, names of the roles, and score of the original tokens after ``steps`` stages."""
    before = np.arange(image.tokens_in)
    role, names = np.zeros(image.tokens_in, dtype=int), tuple[str, ...]()
    score = None
    for stage in image.stages[:steps]:
        if stage.role is not None:
            given = np.asarray(stage.role)
            # given per token that entered the stage, which before it stood for the originals ``before``
            role = given if len(given) == image.tokens_in else np.where(before >= 0, given[before], 0)
            names = stage.role_names
        if stage.score is not None:
            score = np.asarray(stage.score, dtype=float)
        before = np.asarray(stage.assign)
    return before, np.where(before >= 0, role, 0), names, score


def joined(parts: Sequence[ProvenanceMap], text: str) -> ProvenanceMap:
    """The tiles of one picture, or the frames of a video, as one; ``text`` says what is left of them."""
    if len(parts) == 1:
        return parts[0]
    owners, panels, first, shown = [], [], 0, 0
    for part in parts:
        owners.append(np.where(part.owner < 0, -1, part.owner + first))
        panels.append(part.panel + shown)
        first, shown = first + part.kept, shown + len(part.panels)
    scores = [np.full(len(p.owner), np.nan) if p.score is None else p.score for p in parts]
    return ProvenanceMap(
        np.concatenate([p.boxes for p in parts]),
        np.concatenate([p.frame for p in parts]),
        np.concatenate(panels),
        tuple(panel for p in parts for panel in p.panels),
        np.concatenate(owners),
        np.concatenate([p.away for p in parts]),
        np.concatenate([p.unseen for p in parts]),
        np.concatenate([p.role for p in parts]),
        max((p.names for p in parts), key=len),
        None if all(p.score is None for p in parts) else np.concatenate(scores),
        first,
        text,
    )


def _arranged(tokens: ProvenanceMap) -> ProvenanceMap:
    """Views brought together in as few panels as they fit in without overlap, in the order of the vision tower."""
    groups: list[list[int]] = []
    for view, panel in enumerate(tokens.panels):
        for group in groups:
            if not any(_overlap(panel.boxes[0], tokens.panels[v].boxes[0]) for v in group):
                group.append(view)
                break
        else:
            groups.append([view])
    number = np.empty(len(tokens.panels), dtype=int)
    panels = []
    for g, group in enumerate(groups):
        number[group] = g
        size = tokens.panels[group[0]].label
        label = f"{len(group)} tiles of {size} tokens" if len(group) > 1 else f"the whole picture, {size} tokens"
        panels.append(Panel(label, tuple(tokens.panels[v].boxes[0] for v in group)))
    return replace(tokens, panels=tuple(panels), panel=number[tokens.panel])


def _overlap(a: Box, b: Box) -> bool:
    """Whether two boxes share more than a thousandth of the smaller one."""
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    least = min((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return across > 0 and down > 0 and across * down > least / 1000
