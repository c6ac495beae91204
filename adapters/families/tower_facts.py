"""What a model family has to tell of its towers, and of the way from there to the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenreduce.adapters.encoders.blocks import Block, TransformersBlock, attention_of
from tokenreduce.adapters.encoders.patch_grid import PatchGrid
from tokenreduce.adapters.visual_inputs import NotedCall, Picture, Projection, TowerCall
from tokenreduce.layout import Layout, PixelUnit
from tokenreduce.model_facts import ModelFacts
from tokenreduce.uploading import uploaded


class TowerFacts:
    """The part of a ``Family`` that is about vision."""

    model: Any
    core: Any
    decoder: Any
    towers: list[Any]
    packs = False  #: whether the tower runs all pictures as one sequence instead of a batch
    tiled = False  #: whether pictures whose tokens follow one another are the tiles of one

    @property
    def unit(self) -> int:
        """Patches along a side of a token."""
        return 1

    def facts(self) -> ModelFacts:
        """Of a tower without [CLS], whose last block is projected, and in which nothing merges."""
        depth = len(self.layers())
        return ModelFacts(
            family=self.model.config.model_type,
            tower_depth=depth,
            feature_block=depth - 1,
            has_cls=False,
            patches_per_token=self.unit**2,
            decoder_depth=len(self.decoder.layers),
            stages=("projector", "llm", "cache"),
            restores=not self.packs,
        )

    # ------------------------------------------------------------------ what enters the tower

    #: by which the processor of this family moves and divides values between 0 and 1, per channel
    pixel_mean: ClassVar[tuple[float, ...]] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: ClassVar[tuple[float, ...]] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def pixel_unit(self) -> PixelUnit | None:
        """What the pixels of a token are made of, where its tower can run a part of a picture; None: it cannot."""
        return None

    def unit_pixels(self, call: TowerCall, pixels: Tensor, pictures: list[Picture]) -> list[Tensor]:
        """Of the ``pixels`` of a pass that is about to run, those of each picture's tokens, (N, values of a unit)."""
        raise NotImplementedError

    def unit_rows(self, call: TowerCall, pictures: list[Picture]) -> list[Tensor]:
        """The rows of the tower's blocks that each picture's tokens are made of, (N, patches of a unit) long; of a tower that
        does not pack, counted through its batch, rows in front of the patches left out."""
        raise NotImplementedError

    # ------------------------------------------------------------------ the way from the tower to the prompt

    def pictures(self, call: TowerCall) -> list[Picture]:
        """The images and videos that one pass of a tower encoded, in order."""
        raise NotImplementedError

    def arriving(self, call: TowerCall) -> list[Picture]:
        """The same, before the tower runs, where it can merge; none: not known, every row is an image."""
        return self.pictures(call)

    def only_picture(self) -> Picture:
        """What every image of this model is like, for a prompt whose encoding was not seen."""
        raise ValueError(
            f"the images of this prompt were not encoded by the wrapped model, and in a {self.model.config.model_type} model "
            "the placeholder tokens alone do not tell where one image ends; pass pixel_values to the wrapped model itself"
        )

    def tower_tokens(self, values: Tensor) -> Tensor:
        """Per-row values of the tower (M, rows) as values per cell of its output grid (M, cells)."""
        return values[:, self.tower_prefix :]

    def arranged(self, calls: Sequence[TowerCall], counts: Sequence[int]) -> list[int] | None:
        """Order in which the pictures of ``calls``, ``counts`` of each, stand in the prompt; None: as they were encoded."""
        return None

    def per_picture(self, call: TowerCall, values: Tensor, pictures: list[Picture], block: int) -> list[Tensor]:
        """Values of the rows of ``block`` (M, rows), or (rows,) where it packs, as values (N,) of each picture's tokens."""
        return self.placed(call, self.tower_tokens(values), pictures)

    def placed(self, call: TowerCall, values: Tensor, pictures: list[Picture]) -> list[Tensor]:
        """``values`` of the output grids' cells (M, cells), or (cells,) where the tower packs, of each picture's tokens (N,)."""
        found = []
        for picture, own in zip(pictures, values.split([picture.rows for picture in pictures])):
            flat = own.flatten()
            cells = picture.layout.patches
            whole = len(cells) == len(flat) and cells == tuple(range(len(flat)))
            found.append(flat if whole else flat[uploaded(cells, flat.device)])
        return found

    def rows_per_picture(self, call: TowerCall, values: Tensor, pictures: list[Picture], block: int) -> list[Tensor]:
        """``per_picture`` of values with channels: of rows (M, rows, C) or (rows, C), each picture's tokens (N, C)."""
        if values.ndim == (1 if self.packs else 2):
            return self.per_picture(call, values, pictures, block)
        return by_channel(lambda x: self.per_picture(call, x, pictures, block), values)

    def projected_per_picture(self, call: TowerCall, rows: Tensor, pictures: list[Picture]) -> Sequence[Tensor | None]:
        """Rows that enter the projector (M, R, C), or (R, C) where the tower packs, of each picture's tokens (N, C).

        None for a picture whose tokens are interpolated behind the projector.
        """
        cells = self.projected_cells(rows)
        return by_channel(lambda x: self.placed(call, x, pictures), cells)

    def projected_cells(self, rows: Tensor) -> Tensor:
        """Of the rows that enter the projector (M, R, C), those of the output grids' cells (M, cells, C)."""
        return rows

    def patch_counts(self, call: TowerCall) -> list[int]:
        """Patches of each picture, where the tower packs."""
        raise NotImplementedError

    def row_counts(self, call: TowerCall, block: int) -> list[int]:
        """Rows of each picture in ``block``, where the tower packs; fewer than patches where it joins some on the way."""
        return self.patch_counts(call)

    def pieces(self, call: TowerCall, pixels: Tensor) -> list[Tensor]:
        """What was seen in each row of the tower, or of each picture where it packs, (1, ...) each or stacked; no padding."""
        return [piece[None] for piece in pixels.split(self.patch_counts(call))] if self.packs else [pixels]

    def noted_calls(self) -> list[NotedCall]:
        """Methods of the model whose arguments have to be noted for ``pictures`` to tell."""
        return []

    # ------------------------------------------------------------------ the towers

    def layers(self, tower: int = 0) -> Any:
        """The blocks of a tower."""
        return self.towers[tower].encoder.layers

    def blocks(self, tower: int = 0) -> list[Block]:
        """The same, for methods that merge inside it, where that stage is offered."""
        return [self.block(i, tower) for i in range(len(self.layers(tower)))]

    def patch_grid(self, tower: int = 0) -> PatchGrid:
        """Where the patches of a pass are, for the same."""
        embeddings = getattr(self.towers[tower], "embeddings", nn.Module())
        convolution = next((m for m in embeddings.modules() if isinstance(m, nn.Conv2d)), None)
        units = self.facts().tower_grid
        return PatchGrid(convolution, None if units is None else (units[0] * self.unit, units[1] * self.unit))

    def block(self, block: int, tower: int = 0) -> Block:
        """Vision block ``block`` (0-based)."""
        return TransformersBlock(self.layers(tower)[block])

    def tower_attention(self, block: int, tower: int = 0) -> nn.Module:
        """The attention module that is listened to for vision block ``block`` (0-based)."""
        return attention_of(self.layers(tower)[self.heard_in(block, tower)])

    def attending_blocks(self, tower: int = 0) -> list[int]:
        """Blocks of a tower (0-based) that have attention; the others mix neighbours alone."""
        return list(range(len(self.layers(tower))))

    def heard_in(self, block: int, tower: int = 0) -> int:
        """The block whose attention is listened to for vision block ``block``: that one, or the last before it that has any.

        Errors: ``ValueError`` where no block up to it has attention.
        """
        attending = self.attending_blocks(tower)
        heard = [i for i in attending if i <= block]
        if not heard:
            raise ValueError(
                f"the attention of vision block {block} of this {self.model.config.model_type} model is asked for, but no block "
                f"up to it has any; allowed: blocks from {min(attending, default='none')} on, counted from 0"
            )
        return heard[-1]

    @property
    def projectors(self) -> list[nn.Module]:
        """The modules on the way from a tower's blocks to the prompt."""
        others = [*self.towers, self.decoder, self.core.get_input_embeddings(), self.model.get_output_embeddings()]
        heard = self.audio_encoder
        return [m for m in self.core.children() if m is not heard and not any(x in m.modules() for x in others)]

    @property
    def audio_encoder(self) -> nn.Module | None:
        """What encodes sounds, which stay whole and stand in no bill; None where nothing does."""
        found = self.core.get_encoder(modality="audio")
        return None if found is self.core else found

    @property
    def opaque(self) -> list[nn.Module]:
        """Those of towers and ``projectors`` that multiply more than their matrices, in ways that nothing else tells."""
        return [tower for t, tower in enumerate(self.towers) if not len(self.layers(t))]

    @property
    def unit_mergers(self) -> list[nn.Module]:
        """The modules of a tower that packs which give one row for each unit of its blocks, however many there are."""
        return []

    def unit_places(self, layout: Layout) -> Tensor:
        """(N,) long, the place among a picture's units, as the tower packs them, of each of its tokens."""
        return torch.arange(layout.num_tokens)

    def projection(self) -> Projection:
        """Where on the way through them one row is one token."""
        projector = self.core.multi_modal_projector
        return Projection(projector, projector, projector)

    @property
    def tower_prefix(self) -> int:
        """Rows of the tower before the first patch ([CLS], registers)."""
        return 0


def by_channel(placed: Callable[[Tensor], Sequence[Tensor]], values: Tensor) -> list[Tensor]:
    """What ``placed`` makes of ``values`` (..., C), of every channel alike."""
    return list(torch.func.vmap(lambda x: tuple(placed(x)), in_dims=-1, out_dims=-1)(values))
