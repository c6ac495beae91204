"""Pictures that leave the model's encoder with fewer tokens: the model's half, in the workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapters.serving.vllm.settings import Settings, field, read, settings_of
from tokenreduce.adapters.serving.vllm.tower import TowerSignals
from tokenreduce.adapters.visual_inputs import Picture, TowerCall
from tokenreduce.projection import Projector
from tokenreduce.signals import ImageFingerprint, ProjectorInput


class ReducingModel:
    """In front of a model of vLLM's, whose class it shares.

    A subclass says where the tower's modules are, and what a pass of the tower is like.
    """

    supports_encoder_cudagraph = False  # what is recorded once tells no signals
    settings: Settings
    signals: TowerSignals

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]  # of vLLM's class
        self.settings = settings_of(vllm_config.model_config.hf_config)
        needs = self.settings.selection.needs
        self.signals = TowerSignals(self.settings.family, needs, *self.listened())
        refuse_untried(vllm_config, any(not isinstance(need, ImageFingerprint) for need in needs))

    def listened(self) -> tuple[list[nn.Module], list[nn.Module], nn.Module, Any]:
        """Attention modules and the projections in front of them, by block; the module that rows of the projector enter, and
        what makes features of them.
        """
        raise NotImplementedError

    def passed(self, modality: str, given: Mapping[str, Any]) -> tuple[TowerCall, Tensor, list[list[Picture]]]:
        """The pass of the tower for ``given``, what the processor made of items, its pixels, and the pictures of each item."""
        raise NotImplementedError

    def as_prompted(
        self, rows: list[Tensor], items: list[list[Picture]], modality: str, given: Mapping[str, Any]
    ) -> tuple[list[Tensor], list[list[Picture]]]:
        """``rows`` (columns, C) that encode each item, and its pictures, as they stand in a prompt."""
        return [own.flatten(0, -2) for own in rows], items

    def placed(
        self, rows: Tensor, columns: Tensor, picture: Picture, modality: str, given: Mapping[str, Any], i: int
    ) -> Tensor:
        """What the runner is handed of a picture: ``rows`` (K, C), which sit at its ``columns`` (K,)."""
        return rows

    @torch.no_grad()
    def embed_multimodal(self, **given: Any) -> Any:
        budgets = {m: given.pop(field(m)) for m in ("image", "video") if field(m) in given}
        if not budgets:
            return super().embed_multimodal(**given)  # type: ignore[misc]
        ((modality, budget),) = budgets.items()  # the runner asks for one modality at a time
        rows = list(super().embed_multimodal(**given))  # type: ignore[misc]
        call, pixels, items = self.passed(modality, given)
        signals = iter(self.signals.of_pictures(call, pixels, [picture for item in items for picture in item]))
        rows, items = self.as_prompted(rows, items, modality, given)
        made = []
        for i, (whole, item) in enumerate(zip(rows, items, strict=True)):
            keep, own = read(budget[i]), whole.split([picture.columns for picture in item])
            parts = [self._left(x, p, keep, next(signals), modality, given, i) for x, p in zip(own, item)]
            made.append(parts[0] if len(parts) == 1 else torch.cat(parts))
        return tuple(made)

    def _left(
        self, whole: Tensor, picture: Picture, keep: float | int, signals: Any, modality: str, given: Any, i: int
    ) -> Tensor:
        """``whole`` (columns, C) without the tokens that leave; newlines, and text, between its tokens stay."""
        width = self.settings.family.decoder.config.hidden_size
        at = None if picture.tokens is None else torch.tensor(picture.tokens, device=whole.device)
        tokens = whole if at is None else whole[at]
        features, project = tokens[:, :width], self.signals.project
        if signals.get(ProjectorInput(), features) is None:  # interpolated behind it: features are all there is
            signals, project = {**signals, ProjectorInput(): features}, Projector.none()
        left = self.settings.selection.reduced(
            features,
            picture.layout,
            keep,
            signals,
            project,
            beside=tokens[:, width:] if tokens.shape[1] > width else None,
        )
        rows = left.rows if left.beside is None else torch.cat([left.rows, left.beside.to(left.rows.dtype)], dim=1)
        columns = left.place
        if at is not None:
            rows, columns = among_others(rows, at[left.place], whole, at)
        return self.placed(rows, columns, picture, modality, given, i)


def among_others(rows: Tensor, columns: Tensor, whole: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """``rows`` (K, C), which sit at ``columns`` (K,), in the order of columns with those of ``whole`` (columns, C) that are no
    ``tokens``; and the columns of both.
    """
    other = torch.ones(len(whole), dtype=torch.bool, device=whole.device).index_fill(0, tokens, False).nonzero()[:, 0]
    both = torch.cat([columns, other])
    order = both.argsort(stable=True)
    return torch.cat([rows, whole[other]])[order], both[order]


def refuse_untried(vllm_config: Any, listens: bool) -> None:
    """Raise for ways of running that nobody has held against the same model in transformers."""
    parallel = vllm_config.parallel_config
    if listens and parallel.tensor_parallel_size > 1:
        raise ValueError(
            f"--tensor-parallel-size {parallel.tensor_parallel_size}: each rank holds a part of the tower's heads and would rank "
            "tokens by these alone; allowed: 1, or a method that looks at features alone"
        )
    for flag, on in (
        ("--pipeline-parallel-size", parallel.pipeline_parallel_size > 1),
        ("--speculative-config", vllm_config.speculative_config is not None),
        ("--enable-lora", vllm_config.lora_config is not None),
        ("--mm-encoder-tp-mode data", vllm_config.model_config.multimodal_config.mm_encoder_tp_mode == "data"),
        ("--video-pruning-rate", bool(vllm_config.model_config.multimodal_config.video_pruning_rate)),
        ("compile_mm_encoder", vllm_config.compilation_config.compile_mm_encoder),
    ):
        if on:
            raise ValueError(
                f"{flag} of a model that is served reduced: this was not held against transformers yet; leave it out, or leave "
                "out tokenreduce in --hf-overrides"
            )
