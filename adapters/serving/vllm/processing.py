"""Prompts that are laid out for as many tokens as will be left: the processor's half, in the server's front."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import EmbeddingItems
from vllm.multimodal.processing import PromptUpdateDetails

from tokenreduce.adapters.serving.vllm.settings import Settings, field, parted, settings_of, written
from tokenreduce.adapters.upstream.vllm import processors_of
from tokenreduce.adapters.visual_inputs import Picture

#: the pictures of an item of a modality, in order, from the settings and what the processor made of it, by name
PicturesOf = Callable[[Settings, str, Mapping[str, Any]], list[Picture]]


class ReducingProcessor:
    """In front of a processor of vLLM's, whose class it shares: gives each picture its budget and its fewer placeholders."""

    info: Any
    pictures_of: PicturesOf
    text_travels: tuple[str, ...]

    @property
    def settings(self) -> Settings:
        return settings_of(self.info.get_hf_config())

    def _asked(self, given: Mapping[str, object]) -> tuple[float | int, dict[str, object]]:
        keep, others = parted(given)
        return self.settings.keep(keep), others

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Whole pictures: room is kept for what a request may ask for."""
        made = super().get_dummy_inputs(*args, **kwargs)  # type: ignore[misc]
        return replace(made, hf_processor_mm_kwargs={**made.hf_processor_mm_kwargs, "tr_keep": 1.0})

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """Method and budget are part of what a picture is known by: no cache takes one budget for another."""
        keep, others = self._asked(inputs.hf_processor_mm_kwargs)
        known = {**others, "tokenreduce": f"{self.settings.selection.method!r} {keep!r}"}
        return super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=known))  # type: ignore[misc]

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        keep, others = self._asked(hf_kwargs)
        made = super()._apply_hf_processor_main(mm_items, others)  # type: ignore[misc]
        for modality, items in mm_items.items():
            if isinstance(items, EmbeddingItems):
                raise ValueError(
                    f"{modality} embeddings of a model that is served reduced; allowed: pictures, since the method looks at what "
                    "the vision tower does with them"
                )
            if len(items):
                made[field(modality)] = written(keep, len(items))
        return made

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        found = dict(super()._get_mm_fields_config(hf_inputs, parted(hf_processor_mm_kwargs)[1]))  # type: ignore[misc]
        for modality in self.info.supported_mm_limits:
            if field(modality) in hf_inputs:
                found[field(modality)] = MultiModalFieldConfig.batched(modality, keep_on_cpu=True)
        return found

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        keep, others = self._asked(hf_processor_mm_kwargs)
        updates = super()._get_prompt_updates(mm_items, others, out_mm_kwargs)  # type: ignore[misc]
        return [self._shortened(update, keep, out_mm_kwargs) for update in updates]

    def _shortened(self, update: Any, keep: float | int, out_mm_kwargs: Any) -> Any:
        """``update`` with as many placeholders of each item as its tokens that will be left."""

        def replacement(item: int) -> Any:
            whole = update._resolve_content(item)
            made = {name: x.data for name, x in out_mm_kwargs[update.modality][item].items()}
            pictures = type(self).pictures_of(self.settings, update.modality, made)
            left = without(whole, pictures, [self.settings.columns(x, keep) for x in pictures], update.modality)
            return placeholders_alone(left) if update.modality in self.text_travels else left

        return replace(update, replacement=replacement)


def without(whole: Any, pictures: Sequence[Picture], left: Sequence[int], modality: str) -> Any:
    """The content ``whole`` of an update with ``left`` of the placeholders of each of its ``pictures``.

    Errors: ``ValueError`` where it holds another number of them.
    """
    embedded = embedded_of(whole)
    columns = [picture.columns for picture in pictures]
    if int(embedded.sum()) != sum(columns):
        raise ValueError(
            f"vLLM lays out {int(embedded.sum())} placeholders for this {modality}, of which {sum(columns)} tokens are known; it "
            "is served unreduced alone"
        )
    stays = ~embedded
    stays[embedded] = torch.cat([torch.arange(n) < k for n, k in zip(columns, left, strict=True)])
    return PromptUpdateDetails([t for t, own in zip(whole.full, stays.tolist()) if own], whole.is_embed)


def embedded_of(content: Any) -> Any:
    """(tokens,) bool: placeholders of a content of an update."""
    if content.is_embed is None:
        return torch.ones(len(content.full), dtype=torch.bool)
    return content.is_embed(content.full)


def placeholders_alone(content: Any) -> Any:
    """As long as ``content``, of its placeholders alone: text between them is embedded with them, where they will be known."""
    mark = content.full[int(embedded_of(content).nonzero()[0])]
    return PromptUpdateDetails.from_seq([mark] * len(content.full))


def reducing(pictures_of: PicturesOf, text_travels: tuple[str, ...] = ()) -> Callable[[type[Any]], type[Any]]:
    """Give a model class the processors of the class below it, with ``ReducingProcessor`` in front.

    ``text_travels``: modalities whose items hold text between tokens, where how many stand in front of each text follows from
    what they show; the model embeds both.
    """

    def adopt(model: type[Any]) -> type[Any]:
        usual = processors_of(model)

        def processor(info: Any, dummy_inputs: Any, **more: Any) -> Any:
            kind = type(usual.processor(info, dummy_inputs, **more))  # which of several may follow from the model
            own = {"pictures_of": staticmethod(pictures_of), "text_travels": text_travels}
            return type(f"Reducing{kind.__name__}", (ReducingProcessor, kind), own)(info, dummy_inputs, **more)

        return MULTIMODAL_REGISTRY.register_processor(processor, info=usual.info, dummy_inputs=usual.dummy_inputs)(
            model
        )

    return adopt
