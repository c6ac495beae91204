"""Images of one call, travelling through the stages: what is left of each, where it sits, what it stands for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokenreduce.layout import Layout
from tokenreduce.provenance import StageTrace
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import Stage, VisualTokens
from tokenreduce.uploading import uploaded


@dataclass(frozen=True)
class Image:
    """One image or video in the prompt: its sample, the columns of its tokens in the decoder's row, its layout."""

    sample: int
    columns: Tensor
    layout: Layout


@dataclass
class ImageGroup:
    """B images of one call that share their layout and their current number of tokens.

    Attributes:
        members: index of each image in the order of the call.
        decoder_rows: decoder row of each image; ``samples``, (B,) long, the same on the device.
        columns: (B, N0) long, column of each original token in the decoder's input.
        seats: (B, N) long, columns at which the current tokens sit, ascending.
        source: (B, N) long, original token of each current one; -1 for a summary token.
        place: (B, N) long, column whose position id each current token carries.
        size: (B, N) float, original tokens each current one stands for.
        assign: (B, N0) long, current token that stands for each original one; -1 when it is gone.
        role: (B, N) long, roles given so far.
        features: (B, N, D), present while a stage runs.
        companions: (B, N, E), what travels with the tokens unseen by methods, present while a stage runs.
        moved: whether a token is new or sits elsewhere since ``settle``; renumbered: whether a method asked for that.
        entered: tokens of each image that entered the language model; None in front of it.
        notes: by number of the method, what it noted for its later steps (``Reduction.notes``).
        history: every stage passed.
    """

    layout: Layout
    members: list[int]
    decoder_rows: list[int]
    samples: Tensor
    columns: Tensor
    seats: Tensor
    source: Tensor
    place: Tensor
    size: Tensor
    assign: Tensor
    role: Tensor
    features: Tensor | None = None
    companions: Tensor | None = None
    moved: bool = False
    renumbered: bool = False
    entered: int | None = None
    notes: dict[int, Mapping[str, Tensor]] = field(default_factory=dict)
    history: list[StageTrace] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return self.seats.shape[1]

    def showing(self, hidden: Tensor, slot: Tensor | None = None, beside: Tensor | None = None) -> ImageGroup:
        """The same images with the features that ``hidden`` (B, W, D) holds for them, and what ``beside`` (B, W, E) does.

        ``slot`` (B, L) finds columns in both.
        """
        rows = self.samples[:, None]
        at = self.seats if slot is None else slot[rows, self.seats]
        return replace(self, features=hidden[rows, at], companions=None if beside is None else beside[rows, at])

    def tokens(self, number: int, stage: Stage, layer: int | None, **more: Any) -> VisualTokens:
        """The current tokens as method ``number`` is shown them."""
        assert self.features is not None
        return VisualTokens(
            features=self.features,
            layout=self.layout,
            stage=stage,
            layer=layer,
            source=self.source,
            size=self.size,
            role=self.role,
            entered=self.entered,  # type: ignore[arg-type]  # filled in where it is None
            assign=self.assign,
            notes=self.notes.get(number, {}),
            sample=self.samples,
            **more,
        )

    def settle(self) -> ImageGroup:
        """The same images once a stage has been carried out: features handed over, each token at home in its seat."""
        return replace(self, place=self.seats, features=None, companions=None, moved=False, renumbered=False)

    def rows(self, index: list[int]) -> ImageGroup:
        """The sub-group of the images ``index``."""
        pick = uploaded(index, self.seats.device)

        def of(x: Tensor) -> Tensor:
            return x.index_select(0, pick)

        return replace(
            self,
            members=[self.members[i] for i in index],
            decoder_rows=[self.decoder_rows[i] for i in index],
            samples=of(self.samples),
            columns=of(self.columns),
            seats=of(self.seats),
            source=of(self.source),
            place=of(self.place),
            size=of(self.size),
            assign=of(self.assign),
            role=of(self.role),
            features=None if self.features is None else of(self.features),
            companions=None if self.companions is None else of(self.companions),
            notes={number: {name: of(x) for name, x in own.items()} for number, own in self.notes.items()},
            history=[p.rows(pick) for p in self.history],
        )

    def noting(self, number: int, reduction: Reduction) -> ImageGroup:
        """The same images with what method ``number`` notes; a name noted before is noted anew."""
        if not reduction.notes:
            return self
        return replace(self, notes={**self.notes, number: {**self.notes.get(number, {}), **reduction.notes}})

    def apply(self, reduction: Reduction, stage: Stage, layer: int | None, method: str) -> list[ImageGroup]:
        """The images after ``reduction``; more than one group when counts depend on the data."""
        if reduction.valid is None:
            return [self._apply(reduction, stage, layer, method)]
        counts = reduction.valid.sum(dim=1).tolist()
        parts = []
        for count in sorted(set(counts)):
            index = [i for i, c in enumerate(counts) if c == count]
            pick = uploaded(index, self.seats.device)
            parts.append(self.rows(index)._apply(reduction.rows(pick, count), stage, layer, method))
        return parts

    def _apply(self, reduction: Reduction, stage: Stage, layer: int | None, method: str) -> ImageGroup:
        batch, k = reduction.source.shape
        summary = reduction.source < 0
        at = reduction.source.clamp_min(0)
        # Rows sit, in their order, on the columns of their sources; a summary takes the last free column.
        taken = torch.zeros_like(self.seats).scatter_add_(1, at, (~summary).long())
        rank = taken * self.num_tokens + torch.arange(self.num_tokens, device=at.device)
        chosen = rank.topk(k, dim=1).indices.sort(dim=1).values
        seats = self.seats.gather(1, chosen)
        role = self.role if reduction.role is None else reduction.role
        gone = self.assign < 0
        assign = reduction.assign.gather(1, self.assign.clamp_min(0)).masked_fill(gone, -1)
        # what is dropped adds to a row of its own, so that no row at all may be left
        joined = torch.where(reduction.assign < 0, k, reduction.assign)
        features = reduction.features
        if features is None and self.features is not None:
            features = reduction.carry(self.features)
        source = self.source.gather(1, at).masked_fill(summary, -1)

        def noted(given: Tensor | None, absent: float) -> Tensor | None:
            """What was said of the tokens that came in, on the original ones."""
            return None if given is None else given.gather(1, self.assign.clamp_min(0)).masked_fill(gone, absent)

        place = self.place.gather(1, at)
        if not reduction.in_order:
            # a summary has the id of its seat, but none that runs back from the rows around it
            low = place.masked_fill(summary, -1).cummax(dim=1).values
            high = place.masked_fill(summary, torch.iinfo(torch.long).max).flip(1).cummin(dim=1).values.flip(1)
            own = torch.minimum(torch.maximum(self.place.gather(1, chosen), low), high)
            place = torch.where(summary, own, place)
        said, ranked = noted(reduction.role, 0), noted(reduction.score, float("nan"))
        passed = StageTrace(stage, layer, method, assign, seats, source, said, reduction.role_names, ranked)
        return replace(
            self,
            seats=seats,
            source=source,
            place=place,
            size=torch.zeros(batch, k + 1, device=at.device).scatter_add_(1, joined, self.size)[:, :k],
            assign=assign,
            role=role.gather(1, at).masked_fill(summary, 0),
            features=features,
            companions=None if self.companions is None else reduction.carry_along(self.companions),
            moved=self.moved or not reduction.in_order,
            renumbered=self.renumbered or reduction.positions == "renumber",
            history=[*self.history, passed],
        )


def group_images(images: Iterable[Image], device: torch.device) -> list[ImageGroup]:
    """Bundle images of equal layout, so that methods and tensors work on whole batches."""
    bundles: dict[Layout, list[tuple[int, Image]]] = {}
    for i, image in enumerate(images):
        bundles.setdefault(image.layout, []).append((i, image))
    groups = []
    for layout, bundle in bundles.items():
        columns = torch.stack([image.columns for _, image in bundle]).to(device, non_blocking=True)
        n = columns.shape[1]
        rows = torch.arange(n, device=device).expand(len(bundle), n)
        decoder_rows = [image.sample for _, image in bundle]
        groups.append(
            ImageGroup(
                layout=layout,
                members=[i for i, _ in bundle],
                decoder_rows=decoder_rows,
                samples=uploaded(decoder_rows, device),
                columns=columns,
                seats=columns,
                source=rows,
                place=columns,
                size=torch.ones(len(bundle), n, device=device),
                assign=rows,
                role=torch.zeros_like(rows),
            )
        )
    return groups
