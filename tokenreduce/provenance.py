"""What happened to the visual tokens of the last prompt, from source patches to survivors."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenreduce.groups import ImageGroup
from tokenreduce.tokens import Layout, Stage

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


@dataclass(frozen=True)
class StageTrace:
    """One image after one stage.

    Attributes:
        assign: (N0,) long, surviving row that stands for each original token; -1 when it is gone.
        seats: (K,) long, position in the ``input_ids`` row at which each survivor sits.
        source: (K,) long, original token each survivor sits at; -1 for a summary token.
        role: (N0,) long or None, what the method called each token; meanings in ``role_names``.
        score: (N0,) float or None, what the method ranked each token by; NaN for tokens that were gone before.
    """

    stage: Stage
    layer: int | None
    method: str
    assign: Tensor
    seats: Tensor
    source: Tensor
    role: Tensor | None
    role_names: tuple[str, ...]
    score: Tensor | None = None


@dataclass(frozen=True)
class ImageTrace:
    """One image of the prompt: where its tokens were, and every stage it passed."""

    sample: int
    layout: Layout
    columns: Tensor
    stages: tuple[StageTrace, ...]

    @property
    def tokens_in(self) -> int:
        return len(self.columns)

    def reached(self, layer: int) -> StageTrace | None:
        """The last stage passed before decoder layer ``layer`` runs; None when nothing was touched."""
        passed = [s for s in self.stages if s.stage != "cache" and (s.stage != "llm" or (s.layer or 0) <= layer)]
        return passed[-1] if passed else None

    def kept(self, layer: int = 0) -> Tensor:
        """(K,) long, original tokens that decoder layer ``layer`` works on, in sequence order; -1 for summaries."""
        stage = self.reached(layer)
        return torch.arange(self.tokens_in) if stage is None else stage.source

    def standing_for(self, layer: int = 0) -> Tensor:
        """(N0,) long, index into ``kept(layer)`` of the survivor that stands for each original token; -1: gone."""
        stage = self.reached(layer)
        return torch.arange(self.tokens_in) if stage is None else stage.assign

    def seats(self, layer: int = 0) -> Tensor:
        """(K,) long, positions in the ``input_ids`` row of the tokens decoder layer ``layer`` works on."""
        stage = self.reached(layer)
        return self.columns if stage is None else stage.seats


class Trace:
    """Provenance of the last prompt.

    Attributes:
        kept: per sample, (K,) long: positions, in the ``input_ids`` row as passed (padding included), of the visual
            tokens that reach the language model, ascending. Visual tokens no method may touch are among them; a
            summary token counts at the place it takes.
        kept_at: the same per decoder layer k at which tokens may be dropped: ``kept_at[k][b]``.
        images: one ``ImageTrace`` per image, in the order of the call.
        visual: (B, L) bool, the columns of visual tokens in what was passed now; ``offset`` columns were cached before.
        layers: the decoder layers at which tokens may be dropped.
        pictures, processor: what ``show`` was last given; a notebook shows the trace over them.
    """

    pictures: tuple[Any, ...] = ()
    processor: Any = None

    def __init__(
        self, groups: list[ImageGroup], visual: Tensor, offset: int = 0, layers: tuple[int, ...] = (), repeat: int = 1
    ) -> None:
        self._groups = groups
        self.visual = visual[::repeat]
        self.offset = offset
        self._repeat = repeat
        self.layers = layers

    @classmethod
    def of(cls, images: list[ImageTrace], visual: Tensor, offset: int, layers: tuple[int, ...]) -> Trace:
        """A trace of images that are known already."""
        made = cls([], visual, offset, layers)
        made.images = images
        return made

    @cached_property
    def images(self) -> list[ImageTrace]:
        found: dict[int, ImageTrace] = {}
        for group in self._groups:
            samples, columns = group.samples.tolist(), group.columns.cpu() + self.offset
            parts: list[list[StageTrace]] = [[] for _ in samples]
            for p in group.history:
                seats = p.seats.cpu() + self.offset
                assign, source = p.assign.cpu(), p.source.cpu()
                role, score = (None if x is None else x.cpu() for x in (p.role, p.score))
                for i, part in enumerate(parts):
                    named, ranked = (None if x is None else x[i] for x in (role, score))
                    stood = assign[i], seats[i], source[i]
                    part.append(StageTrace(p.stage, p.layer, p.method, *stood, named, p.role_names, ranked))
            for i, member in enumerate(group.members):
                if samples[i] % self._repeat == 0:
                    found[member] = ImageTrace(samples[i] // self._repeat, group.layout, columns[i], tuple(parts[i]))
        return [found[member] for member in sorted(found)]

    def images_per_sample(self) -> list[list[tuple[int, int]]]:
        """Per sample, (tokens in, tokens left in the last decoder layer) of each image; waits for no device."""
        rows: dict[int, tuple[int, int, int]] = {}
        if not self._groups:  # made from images
            ends = ((image, image.reached(sys.maxsize)) for image in self.images)
            sizes = [(m.sample, m.tokens_in, m.tokens_in if end is None else len(end.source)) for m, end in ends]
            rows = dict(enumerate(sizes))
        for group in self._groups:
            for member, sample in zip(group.members, group.samples.tolist()):
                rows[member] = (sample, group.columns.shape[1], group.num_tokens)
        found: list[list[tuple[int, int]]] = [[] for _ in range(len(self.visual))]
        for _, (sample, n, k) in sorted(rows.items()):
            if sample % self._repeat == 0:
                found[sample // self._repeat].append((n, k))
        return found

    def _kept(self, layer: int) -> list[Tensor]:
        alive = self.visual.clone()
        for image in self.images:
            alive[image.sample, image.columns - self.offset] = False
            alive[image.sample, image.seats(layer) - self.offset] = True
        return [row.nonzero().flatten() + self.offset for row in alive]

    @cached_property
    def kept(self) -> list[Tensor]:
        return self._kept(0)

    @cached_property
    def kept_at(self) -> dict[int, list[Tensor]]:
        return {layer: self._kept(layer) for layer in self.layers}

    def show(self, pictures: Any = None, processor: Any = None, **options: Any) -> Picture:
        """The pictures of the prompt, each with what was kept of it; remembers ``pictures`` and ``processor``.

        Args:
            pictures: the original image, or a list with one entry per picture in the order of the call: an image, or the
                list of frames of a video (of a single video the frames themselves). None: those of the last time, else a
                map of the tokens.
            processor: what made the model's inputs of them.
            options: of ``tr.draw``, such as ``heat=True``, ``layer=2`` or ``side=400``.
        """
        from tokenreduce.draw.shown import show

        if pictures is not None:
            self.pictures = tuple(pictures) if isinstance(pictures, (list, tuple)) else (pictures,)
            self.processor = processor
        return show(self, self.pictures, self.processor, **options)

    def _repr_png_(self) -> bytes | None:
        if not self.images:
            return None
        held = io.BytesIO()
        self.show().save(held, "PNG")
        return held.getvalue()

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write this trace to ``path`` (.npz, no pickle); ``tr.load_trace(path)`` reads it. See ``tokenreduce.archive``."""
        from tokenreduce.archive import save_trace

        save_trace(self, path, overwrite)

    def __repr__(self) -> str:
        rows = [f"Trace of {len(self.visual)} sample(s), {len(self.images)} image(s)"]
        for image in self.images:
            path = "".join(
                f" -> {len(s.source)} ({s.method}, {s.stage}{'' if s.layer is None else f' {s.layer}'})"
                for s in image.stages
            )
            rows.append(f"  sample {image.sample}: {image.tokens_in} tokens{path or ', all kept'}")
        return "\n".join(rows)
