"""The lmms-eval plug-in: any of its models that holds a transformers VLM, with visual token reduction and measurements.

``lmms_eval --model tokenreduce --model_args pretrained=...,tr_method=hiprune,tr_keep=0.33 --tasks ...``
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

TASKS = Path(__file__).parent.parent / "tasks"  # for --include_path


def manifests() -> list[Any]:
    """What the entry point group ``lmms_eval.models`` asks for; nothing heavy is imported before the model is used."""
    from tokenreduce.adapters.upstream.lmms_eval import manifests as known_to_lmms_eval

    from .failures import fail_without_evaluation

    fail_without_evaluation()
    return known_to_lmms_eval(f"{__name__}.model")


def require() -> None:
    """Raise ``ValueError`` with the pip command where lmms-eval is not installed."""
    from importlib.util import find_spec

    if find_spec("lmms_eval") is None:
        raise ValueError("lmms_eval is not installed; run: pip install 'tokenreduce[eval]'")


def told(result: Mapping[str, Any]) -> str:
    """The scores of a cell on one line."""
    if result.get("metric") is not None or not result.get("tasks"):
        return f"{result['metric']} {result['score']}"
    first = {name: next(iter(about["metrics"].items()), None) for name, about in result["tasks"].items()}
    return ", ".join(f"{name} {pair[0]} {pair[1]['value']}" for name, pair in first.items() if pair is not None)
