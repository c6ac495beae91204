"""Pictures that leave the model's encoder with fewer tokens: the model's half, in the workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapters.serving.vllm.settings import Settings, field, read, settings_of
from tokenreduce.adapters.serving.vllm.tower import TowerSignals
from tokenreduce.adapters.visual_inputs import Picture, TowerCall
from tokenreduce.signals import ImageFingerprint


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

    def passed(self, modality: str, given: Mapping[str, Any]) -> tuple[TowerCall, Tensor, list[Picture]]:
        """The pass of the tower that ``given``, what the processor made of pictures, leads to, its pixels, and its pictures."""
        raise NotImplementedError

    def placed(
        self, rows: Tensor, place: Tensor, picture: Picture, modality: str, given: Mapping[str, Any], i: int
    ) -> Tensor:
        """What the runner is handed of a picture: ``rows`` (K, C), which sit at the tokens ``place`` (K,)."""
        return rows

    @torch.no_grad()
    def embed_multimodal(self, **given: Any) -> Any:
        budgets = {m: given.pop(field(m)) for m in ("image", "video") if field(m) in given}
        whole = super().embed_multimodal(**given)  # type: ignore[misc]
        if not budgets:
            return whole
        ((modality, budget),) = budgets.items()  # the runner asks for one modality at a time
        call, pixels, pictures = self.passed(modality, given)
        signals = self.signals.of_pictures(call, pixels, pictures)
        return tuple(
            self._left(whole[i], picture, read(budget[i]), signals[i], modality, given, i)
            for i, picture in enumerate(pictures)
        )

    def _left(
        self, whole: Tensor, picture: Picture, keep: float | int, signals: Any, modality: str, given: Any, i: int
    ) -> Tensor:
        """``whole`` (columns, C) without the tokens that leave; newlines between its tokens stay."""
        width = self.settings.family.decoder.config.hidden_size
        at = None if picture.tokens is None else torch.tensor(picture.tokens, device=whole.device)
        tokens = whole if at is None else whole[at]
        left = self.settings.selection.reduced(
            tokens[:, :width],
            picture.layout,
            keep,
            signals,
            self.signals.project,
            beside=tokens[:, width:] if tokens.shape[1] > width else None,
        )
        rows = left.rows if left.beside is None else torch.cat([left.rows, left.beside.to(left.rows.dtype)], dim=1)
        rows = self.placed(rows, left.place, picture, modality, given, i)
        return rows if at is None else among_newlines(rows, at[left.place], whole, at)


def among_newlines(rows: Tensor, columns: Tensor, whole: Tensor, tokens: Tensor) -> Tensor:
    """``rows`` (K, C), which sit at ``columns`` (K,), in the order of columns with those of ``whole`` (columns, C) that are no
    ``tokens``.
    """
    other = torch.ones(len(whole), dtype=torch.bool, device=whole.device).index_fill(0, tokens, False).nonzero()[:, 0]
    order = torch.cat([columns, other]).argsort(stable=True)
    return torch.cat([rows, whole[other]])[order]


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
