"""What a model family has to tell: where its blocks are, how its tokens map to image cells. One subclass per file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenreduce.adapters.encoders.blocks import Block, TransformersBlock
from tokenreduce.adapters.encoders.patch_grid import PatchGrid
from tokenreduce.adapters.registry import register
from tokenreduce.adapters.upstream.decoder import RECURRENT, TOKENWISE, attention_of, layer_type, layers_holder
from tokenreduce.adapters.upstream.model import special_ids
from tokenreduce.adapters.visual_inputs import Medium, NotedCall, Picture, Projection, TowerCall
from tokenreduce.method import ModelFacts

DECODER_LAYERS = ("full_attention", "sliding_attention")


class Family:
    """Facts of one family of vision-language models, read off one model. Knows no method.

    A subclass names the ``model_types`` it serves, a one-line ``remarks`` for the table of families, and implements
    ``facts``, ``pictures`` and what else differs from the defaults below. Constructing it raises ``ValueError`` for a
    variant that cannot be served soundly.
    """

    model_types: ClassVar[tuple[str, ...]]
    remarks: ClassVar[str] = ""
    decoder_layers: ClassVar[tuple[str, ...]] = DECODER_LAYERS
    packs = False  #: whether the tower runs all pictures as one sequence instead of a batch
    tiled = False  #: whether pictures whose tokens follow one another are the tiles of one
    windowed = True  #: whether sliding windows of the decoder cut blocks of tokens that attend both ways

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        register(cls.__dict__.get("model_types", ()), cls)

    @classmethod
    def serves(cls, model: Any) -> bool:
        """Whether ``model`` belongs to this family."""
        return getattr(getattr(model, "config", None), "model_type", None) in cls.model_types

    def __init__(self, model: Any) -> None:
        self.model = model
        self.core: Any = model.base_model
        self.decoder = layers_holder(model)
        self.towers: list[Any] = [self.core.get_encoder(modality="image")]
        kinds = set(getattr(self.decoder.config, "layer_types", None) or ("full_attention",))
        if not hasattr(self.decoder, "layers") or not kinds <= set(self.decoder_layers):
            raise ValueError(
                f"the language model of this {model.config.model_type} model has layers of type {sorted(kinds)}; "
                f"allowed: {', '.join(self.decoder_layers)}. Recurrent layers have no per-token cache to shorten."
            )

    @property
    def hooked(self) -> list[nn.Module]:
        """The modules that hooks sit on, each once: no two wrapped models may share one."""
        return list(dict.fromkeys([self.core, self.decoder, *self.towers]))

    def facts(self) -> ModelFacts:
        raise NotImplementedError

    def offers(self) -> ModelFacts:
        """``facts`` of this very model: layers with a window or a state hold what they choose, which no stage drops."""
        facts = self.facts()
        kinds = {layer_type(self.decoder.config, i) for i in range(facts.decoder_depth)}
        if not kinds <= {"full_attention", *TOKENWISE}:
            return replace(facts, stages=tuple(stage for stage in facts.stages if stage != "cache"))
        return facts

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

    def per_picture(self, call: TowerCall, values: Tensor, pictures: list[Picture]) -> list[Tensor]:
        """Values of the tower's rows (M, rows), or (rows,) where it packs, as values (N,) of each picture's tokens."""
        return self.placed(call, self.tower_tokens(values), pictures)

    def placed(self, call: TowerCall, values: Tensor, pictures: list[Picture]) -> list[Tensor]:
        """``values`` of the output grids' cells (M, cells), or (cells,) where the tower packs, of each picture's tokens (N,)."""
        found = []
        for picture, own in zip(pictures, values.split([picture.rows for picture in pictures])):
            flat = own.flatten()
            cells = picture.layout.patches
            whole = len(cells) == len(flat) and cells == tuple(range(len(flat)))
            found.append(flat if whole else flat[torch.tensor(cells, device=flat.device)])
        return found

    def rows_per_picture(self, call: TowerCall, values: Tensor, pictures: list[Picture]) -> list[Tensor]:
        """``per_picture`` of values with channels: of rows (M, rows, C) or (rows, C), each picture's tokens (N, C)."""
        if values.ndim == (1 if self.packs else 2):
            return self.per_picture(call, values, pictures)
        return by_channel(lambda x: self.per_picture(call, x, pictures), values)

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

    def noted_calls(self) -> list[NotedCall]:
        """Methods of the model whose arguments have to be noted for ``pictures`` to tell."""
        return []

    # ------------------------------------------------------------------ the towers

    def layers(self, tower: int = 0) -> Any:
        """The blocks of a tower."""
        return self.towers[tower].encoder.layers

    def blocks(self, tower: int = 0) -> list[Block]:
        """The same, for methods that merge inside it; none where merged patches would have no place."""
        return [self.block(i, tower) for i in range(len(self.layers(tower)))]

    def patch_grid(self, tower: int = 0) -> PatchGrid:
        """Where the patches of a pass are, for the same."""
        embeddings = getattr(self.towers[tower], "embeddings", nn.Module())
        convolution = next((m for m in embeddings.modules() if isinstance(m, nn.Conv2d)), None)
        return PatchGrid(convolution, self.facts().tower_grid)

    def block(self, block: int, tower: int = 0) -> Block:
        """Vision block ``block`` (0-based)."""
        return TransformersBlock(self.layers(tower)[block])

    def tower_attention(self, block: int, tower: int = 0) -> nn.Module:
        """The attention module of vision block ``block`` (0-based)."""
        return self.block(block, tower).attention

    @property
    def projectors(self) -> list[nn.Module]:
        """The modules on the way from a tower's blocks to the prompt."""
        others = [*self.towers, self.decoder, self.core.get_input_embeddings(), self.model.get_output_embeddings()]
        audio = self.core.get_encoder(modality="audio")
        return [m for m in self.core.children() if m is not audio and not any(x in m.modules() for x in others)]

    def projection(self) -> Projection:
        """Where on the way through them one row is one token."""
        projector = self.core.multi_modal_projector
        return Projection(projector, projector, projector)

    @property
    def tower_prefix(self) -> int:
        """Rows of the tower before the first patch ([CLS], registers)."""
        return 0

    # ------------------------------------------------------------------ the language model

    @property
    def attends_both_ways(self) -> bool:
        """Whether some tokens of a prompt attend to each other both ways."""
        return type(self).two_way is not Family.two_way

    def decoder_attention(self, layer: int) -> nn.Module:
        """The attention module of decoder ``layer``.

        Errors: ``ValueError`` for a layer without one.
        """
        kinds = [layer_type(self.decoder.config, i) for i in range(len(self.decoder.layers))]
        if kinds[layer] in (*RECURRENT, *TOKENWISE):
            there = [i for i, kind in enumerate(kinds) if kind not in (*RECURRENT, *TOKENWISE)]
            raise ValueError(
                f"decoder layer {layer} of this {self.model.config.model_type} model "
                f"{'is recurrent' if kinds[layer] in RECURRENT else 'mixes no tokens'} and has no attention to listen to; "
                f"allowed: layers {', '.join(map(str, there))}. A method that drops tokens before layer K listens to layer K - 1."
            )
        return attention_of(self.decoder.layers[layer])

    def rotates(self, layer: int) -> bool:
        """Whether decoder ``layer`` rotates its keys by their positions."""
        return True

    def two_way(self, arguments: Mapping[str, Any], embeds: Tensor) -> Tensor | None:
        """(B, L) long: tokens of a block, an equal number >= 0, attend to each other both ways; None: all is causal.

        ``arguments`` are those of the model's own call, ``embeds`` (B, L, D) what it hands to the decoder.
        """
        return None

    def placeholder_ids(self) -> dict[Medium, int]:
        """Token id of the placeholders of each medium."""
        config = self.model.config
        names: dict[Medium, str] = {"image": "image_token_id", "video": "video_token_id"}
        ids = {medium: getattr(config, name, None) for medium, name in names.items()}
        return {medium: i for medium, i in ids.items() if i is not None}

    def placeholders(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, L) bool on the CPU, twice: columns of visual placeholders, and those of videos among them.

        They are recognised by id or else by embedding.
        """
        ids = self.placeholder_ids()
        if input_ids is not None:
            given = input_ids.cpu()
            found = {medium: given == i for medium, i in ids.items()}
        else:
            found = {medium: self._embedded(i, inputs_embeds).cpu() for medium, i in ids.items()}
        image = found["image"]
        video = found.get("video", torch.zeros_like(image))
        return image | video, video

    def special_columns(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """(B, L) bool: columns of the ids that the configuration names, recognised by id or else by embedding."""
        ids = special_ids(self.model)
        if input_ids is not None:
            return torch.isin(input_ids, torch.tensor(ids, device=input_ids.device))
        return torch.stack([self._embedded(i, inputs_embeds) for i in ids]).any(dim=0)

    def _embedded(self, token: int, inputs_embeds: Tensor | None) -> Tensor:
        """(B, L) bool: columns of ``inputs_embeds`` (B, L, D) that hold the embedding of ``token``."""
        assert inputs_embeds is not None, "a model is called with one of the two"
        mark = self.model.get_input_embeddings()(torch.tensor([token], device=inputs_embeds.device))
        return (inputs_embeds == mark.to(inputs_embeds.dtype)).all(-1)


def by_channel(placed: Callable[[Tensor], Sequence[Tensor]], values: Tensor) -> list[Tensor]:
    """What ``placed`` makes of ``values`` (..., C), of every channel alike."""
    return list(torch.func.vmap(lambda x: tuple(placed(x)), in_dims=-1, out_dims=-1)(values))
