"""What a model family has to tell: where its blocks are, how its tokens map to image cells. One subclass per file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenreduce.adapters.families.tower_facts import TowerFacts
from tokenreduce.adapters.registry import register
from tokenreduce.adapters.upstream.decoder import RECURRENT, TOKENWISE, attention_of, holders, layer_type, layers_holder
from tokenreduce.adapters.upstream.model import special_ids
from tokenreduce.adapters.visual_inputs import Join, Medium, Placed
from tokenreduce.model_facts import ModelFacts
from tokenreduce.uploading import uploaded

DECODER_LAYERS = ("full_attention", "sliding_attention")


class Family(TowerFacts):
    """Facts of one family of vision-language models, read off one model. Knows no method.

    A subclass names the ``model_types`` it serves, a one-line ``remarks`` for the table of families, and implements
    ``facts``, ``pictures`` and what else differs from the defaults below. Constructing it raises ``ValueError`` for a
    variant that cannot be served soundly.
    """

    model_types: ClassVar[tuple[str, ...]]
    remarks: ClassVar[str] = ""
    decoder_layers: ClassVar[tuple[str, ...]] = DECODER_LAYERS
    two_way_layers: ClassVar[tuple[str, ...] | None] = None  #: kinds of layers with such blocks; None: all
    pictures_join: ClassVar[Join] = "sequence"  #: where pictures join the text
    windowed = True  #: whether sliding windows of the decoder cut blocks of tokens that attend both ways
    #: what frames of a video that arrive in later calls are shown as; None: a video must come in one call
    streams_as: ClassVar[Medium | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.streams_as = cls.__dict__.get("streams_as")  # a relative may write something between frames
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

    def offers(self) -> ModelFacts:
        """``facts`` of this very model: layers with a window or a state hold what they choose, which no stage drops."""
        facts, config = self.facts(), self.decoder.config
        plain = {layer_type(config, i) for i in range(facts.decoder_depth)} <= {"full_attention", *TOKENWISE}
        shared = (holder for i, holder in enumerate(holders(config)) if holder != i)
        stages = tuple(stage for stage in facts.stages if plain or stage != "cache")
        if "llm" in stages:
            stages = (*stages, "decode")
        if self.pixel_unit is not None:
            stages = ("pixels", *stages)
        tower = getattr(self.towers[0], "config", None)
        return replace(
            facts,
            stages=stages,
            pixel_unit=self.pixel_unit,
            tower_width=getattr(tower, "hidden_size", 0),
            tower_type=getattr(tower, "model_type", "") or type(self.towers[0]).__name__,
            decoder_heads=getattr(config, "num_attention_heads", 0),
            decoder_width=getattr(config, "hidden_size", 0),
            shared_from=min(shared, default=None),
        )

    # ------------------------------------------------------------------ the language model

    @property
    def text_encoder(self) -> Any:
        """The text encoder that reads the pictures, where one stands before the decoder."""
        raise NotImplementedError

    def rows_attended(self, arguments: Mapping[str, Any], shape: tuple[int, int]) -> tuple[Tensor, list[Placed]]:
        """Where the decoder attends across: (B, N) bool of real rows, and the pictures in them; ``shape`` is (B, N).

        ``arguments`` are those of the model's own call.
        """
        raise NotImplementedError

    @property
    def attends_both_ways(self) -> bool:
        """Whether some tokens of a prompt attend to each other both ways."""
        return type(self).two_way is not Family.two_way

    @property
    def attending(self) -> list[int]:
        """Decoder layers that have attention."""
        config, without = self.decoder.config, (*RECURRENT, *TOKENWISE)
        return [i for i in range(len(self.decoder.layers)) if layer_type(config, i) not in without]

    def decoder_attention(self, layer: int) -> nn.Module:
        """The attention module of decoder ``layer``.

        Errors: ``ValueError`` for a layer without one.
        """
        if layer not in self.attending:
            recurrent = layer_type(self.decoder.config, layer) in RECURRENT
            raise ValueError(
                f"decoder layer {layer} of this {self.model.config.model_type} model "
                f"{'is recurrent' if recurrent else 'mixes no tokens'} and has no attention to listen to; allowed: layers "
                f"{', '.join(map(str, self.attending))}. A method that drops tokens before layer K listens to layer K - 1."
            )
        return attention_of(self.decoder.layers[layer])

    def rotates(self, layer: int) -> bool:
        """Whether decoder ``layer`` rotates its keys by their positions."""
        return True

    @property
    def frames_per_step(self) -> int:
        """Frames of a video that the tower joins in one step of time."""
        return 1

    def text_ids(self, first: int, count: int) -> Tensor:
        """(1, n) or, for rotary ids of several axes, (A, 1, n) position ids of ``count`` tokens of text from ``first`` on."""
        return torch.arange(first, first + count)[None]

    def ids_going_on(
        self, arguments: Mapping[str, Any], columns: int, start: int, steps: int, following: int
    ) -> tuple[Tensor, int]:
        """Position ids, as of ``text_ids``, of ``columns`` placeholders with which a video goes on, and the id behind them.

        ``arguments`` are those of their frames; the video begins at id ``start``, ``steps`` steps of time came before, and
        ``following`` is the id of text that came next.
        """
        return self.text_ids(following, columns), following + columns

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
            return torch.isin(input_ids, uploaded(ids, input_ids.device))
        return torch.stack([self._embedded(i, inputs_embeds) for i in ids]).any(dim=0)

    def _embedded(self, token: int, inputs_embeds: Tensor | None) -> Tensor:
        """(B, L) bool: columns of ``inputs_embeds`` (B, L, D) that hold the embedding of ``token``."""
        assert inputs_embeds is not None, "a model is called with one of the two"
        mark = self.model.get_input_embeddings()(uploaded([token], inputs_embeds.device))
        return (inputs_embeds == mark.to(inputs_embeds.dtype)).all(-1)


def runs(marked: Tensor) -> Tensor:
    """(B, L) long, the number of the run of neighbours that each of the ``marked`` columns (B, L) is in; -1: not marked."""
    first = marked & ~F.pad(marked, (1, 0))[:, :-1]
    return torch.where(marked, first.cumsum(dim=1) - 1, -1)
