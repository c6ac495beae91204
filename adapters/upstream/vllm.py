"""How vLLM finds a model, and what a model needs of its runner. Nothing is imported before it is needed.

| seam | seen |
| --- | --- |
| `ModelRegistry._normalize_arch(architecture, model_config)` says which entry of the registry serves a model | 0.32 |
| `registry._MULTIMODAL_MODELS`: architectures of models with pictures | 0.32 |
| `multimodal_config.is_multimodal_pruning_enabled()`: asked by the runner once the model is loaded | 0.32, 0.33 |
| `CPUModelRunner.load_model` never asks, so that `is_multimodal_pruning_enabled` of the runner stays False | 0.32, 0.33 |
| a class's `_processor_factory`, with `info`, `processor` and `dummy_inputs` | 0.32 |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tokenreduce.adapters.upstream.seams import seam_changed


def register_models(places: Mapping[str, str]) -> None:
    """Name classes (``module:Class``) by their architecture; they are imported when a model of theirs is loaded."""
    from vllm import ModelRegistry

    for architecture, place in places.items():
        ModelRegistry.register_model(architecture, place)


def choose_architecture(chosen: Callable[[str, object], str]) -> None:
    """Ask ``chosen(architecture, configuration)`` which entry of the registry serves a model."""
    from vllm import ModelRegistry

    if not hasattr(type(ModelRegistry), "_normalize_arch"):
        raise seam_changed("vllm", "the registry of models", "asked by _normalize_arch", "no such method")
    usual = type(ModelRegistry)._normalize_arch.__get__(ModelRegistry)

    def normalized(architecture: str, model_config: Any) -> str:
        return usual(chosen(architecture, model_config.hf_config), model_config)

    ModelRegistry._normalize_arch = normalized


def is_multimodal(architecture: str) -> bool:
    """Whether models of ``architecture`` take pictures."""
    from vllm.model_executor.models import registry

    return architecture in registry._MULTIMODAL_MODELS


def processors_of(model: type[Any]) -> Any:
    """What makes the processors of a class: ``info``, ``processor`` and ``dummy_inputs``."""
    return model._processor_factory


def places_from_model(vllm_config: Any) -> None:
    """Have the runner ask the model for position ids of its pictures, which it otherwise does for pruned videos alone."""
    vllm_config.model_config.multimodal_config.is_multimodal_pruning_enabled = _yes
    if vllm_config.device_config.device_type == "cpu":
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner

        CPUModelRunner.is_multimodal_pruning_enabled = property(_model_prunes, _not_set)


def _yes() -> bool:
    return True


def _model_prunes(runner: Any) -> bool:
    return getattr(getattr(runner, "model", None), "supports_multimodal_pruning", False)


def _not_set(runner: Any, value: bool) -> None:
    """What the runner of GPUs notes before it has a model."""
