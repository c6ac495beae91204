"""What a model family has to tell: where its blocks are, how its tokens map to image cells. One subclass per file."""

from __future__ import annotations

import difflib
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenreduce.adapters.blocks import Block
from tokenreduce.groups import Image
from tokenreduce.method import ModelFacts

DECODER_LAYERS = ("full_attention", "sliding_attention")


class Family:
    """Facts of one family of vision-language models, read off one model. Knows no method.

    A subclass names the ``model_types`` it serves, a one-line ``remarks`` for the table of families, and implements the
    members below. Constructing it raises ``ValueError`` for a variant that cannot be served soundly.
    """

    model_types: ClassVar[tuple[str, ...]]
    remarks: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for model_type in cls.__dict__.get("model_types", ()):
            _FAMILIES[model_type] = cls

    @classmethod
    def serves(cls, model: Any) -> bool:
        """Whether ``model`` belongs to this family."""
        return getattr(getattr(model, "config", None), "model_type", None) in cls.model_types

    def __init__(self, model: Any) -> None:
        self.model = model
        self.core: Any = model.base_model
        self.decoder = model.get_decoder()
        self.tower = self.core.get_encoder(modality="image")
        kinds = set(getattr(self.decoder.config, "layer_types", None) or ("full_attention",))
        if not hasattr(self.decoder, "layers") or not kinds <= set(DECODER_LAYERS):
            raise ValueError(
                f"the language model of this {model.config.model_type} model has layers of type {sorted(kinds)}; "
                f"allowed: {', '.join(DECODER_LAYERS)}. Recurrent layers have no per-token cache to shorten."
            )

    def facts(self) -> ModelFacts:
        raise NotImplementedError

    def tower_attention(self, block: int) -> nn.Module:
        """The attention module of vision block ``block`` (0-based)."""
        raise NotImplementedError

    def tower_tokens(self, values: Tensor) -> Tensor:
        """Per-row values of the tower (M, rows) as values per visual token (M, N)."""
        raise NotImplementedError

    def locate(self, visual: Tensor) -> list[Image]:
        """Images of a call, in order, from ``visual`` (B, L) bool on the CPU, the columns of image placeholders."""
        raise NotImplementedError

    def blocks(self) -> list[Block]:
        """The blocks of the vision tower, for methods that merge inside it."""
        raise NotImplementedError

    def decoder_attention(self, layer: int) -> nn.Module:
        return self.decoder.layers[layer].self_attn

    @property
    def tower_prefix(self) -> int:
        """Rows of the tower before the first patch ([CLS], registers)."""
        return 0

    def placeholder_ids(self) -> list[int]:
        config = self.model.config
        ids = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
        return [i for i in ids if i is not None]

    def visual_columns(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """(B, L) bool on the CPU: columns of visual placeholders, recognised by id or else by embedding."""
        ids = self.placeholder_ids()
        if input_ids is not None:
            return torch.isin(input_ids.cpu(), torch.tensor(ids))
        assert inputs_embeds is not None, "a model is called with one of the two"
        table = self.model.get_input_embeddings()
        marks = table(torch.tensor(ids, device=inputs_embeds.device)).to(inputs_embeds.dtype)
        return (inputs_embeds[:, :, None] == marks).all(-1).any(-1).cpu()


_FAMILIES: dict[str, type[Any]] = {}


def families() -> dict[str, type[Any]]:
    """Family class, of models or of encoders alone, by model type."""
    package = import_module("tokenreduce.adapters")
    for module in iter_modules(package.__path__):
        import_module(f"tokenreduce.adapters.{module.name}")
    return dict(sorted(_FAMILIES.items()))


def family_of(model: Any) -> Any:
    """The family of ``model``, or an error that lists what is supported."""
    known = families()
    for cls in dict.fromkeys(known.values()):
        if cls.serves(model):
            return cls(model)
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    near = difflib.get_close_matches(str(model_type), known, n=1)
    hint = f" Closest: {near[0]!r}." if near else ""
    if model_type is None:
        raise TypeError(
            f"model is a {type(model).__name__}, neither a vision-language model of transformers nor a supported vision "
            f"encoder; supported model types: {', '.join(known)}"
        )
    raise ValueError(
        f"model of type {model_type!r} ({type(model).__name__}) is not supported; supported model types: "
        f"{', '.join(known)}.{hint} Adding one is a single file, see docs/adding_a_family.md"
    )
