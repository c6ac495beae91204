"""The trace of a prompt as users hold it: it counts, shows itself, writes itself and is read back."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tokenreduce.archive import read_images, write_images
from tokenreduce.groups import ImageGroup
from tokenreduce.provenance import ImageTrace, StageTrace

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


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
        choice: which method ``auto`` was, and why; empty without it.
        pictures, processor: what ``show`` was last given; a notebook shows the trace over them.
    """

    choice: str = ""
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
    def of(
        cls, images: list[ImageTrace], visual: Tensor, offset: int, layers: tuple[int, ...], choice: str = ""
    ) -> Trace:
        """A trace of images that are known already."""
        made = cls([], visual, offset, layers)
        made.images, made.choice = images, choice
        return made

    @cached_property
    def images(self) -> list[ImageTrace]:
        found: dict[int, ImageTrace] = {}
        for group in self._groups:
            samples, columns = group.decoder_rows, group.columns.cpu() + self.offset
            parts: list[list[StageTrace]] = [[] for _ in samples]
            for passed in group.history:
                here = passed.each(Tensor.cpu)
                here = replace(here, seats=here.seats + self.offset)
                for i, part in enumerate(parts):
                    part.append(here.each(lambda x, i=i: x[i]))  # type: ignore[misc]
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
            for member, sample in zip(group.members, group.decoder_rows):
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
        from tokenreduce.draw.prompt import draw_prompt

        if pictures is not None:
            self.pictures = tuple(pictures) if isinstance(pictures, (list, tuple)) else (pictures,)
            self.processor = processor
        return draw_prompt(self, self.pictures, self.processor, **options)

    def _repr_png_(self) -> bytes | None:
        if not self.images:
            return None
        held = io.BytesIO()
        self.show().save(held, "PNG")
        return held.getvalue()

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write this trace to ``path`` (.npz, no pickle); ``tr.load_trace(path)`` reads it. See ``tokenreduce.archive``."""
        write_images(path, self.images, self.visual, self.offset, self.layers, self.choice, overwrite)

    def __repr__(self) -> str:
        rows = [f"Trace of {len(self.visual)} sample(s), {len(self.images)} image(s)"]
        for image in self.images:
            path = "".join(
                f" -> {len(s.source)} ({s.method}, {s.stage}{'' if s.layer is None else f' {s.layer}'})"
                for s in image.stages
            )
            rows.append(f"  sample {image.sample}: {image.tokens_in} tokens{path or ', all kept'}")
        return "\n".join(rows)


def load_trace(path: str | Path) -> Trace:
    """The trace that ``trace.save(path)`` wrote.

    Errors: ``FileNotFoundError`` where there is no such file, ``ValueError`` where it holds no trace of this version.
    """
    return Trace.of(*read_images(path))
