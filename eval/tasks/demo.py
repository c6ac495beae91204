"""What the demo tasks' YAML files point at: their data, made on first use, and how a document becomes a prompt."""

from __future__ import annotations

from typing import Any

from tokenreduce.eval.data import SETS, parquet
from tokenreduce.eval.demo import right
from tokenreduce.pictures import as_rgb


def __getattr__(name: str) -> str:
    """``images``, ``crowd``, ``video``: the path of the set's parquet file."""
    if name not in SETS:
        raise AttributeError(name)
    return str(parquet(name))


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    return [as_rgb(picture) for picture in doc["pictures"]]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    return doc["question"]


def doc_to_messages(doc: dict[str, Any], lmms_eval_specific_kwargs: Any = None) -> list[dict[str, Any]]:
    content = [{"type": "image", "url": picture} for picture in doc_to_visual(doc)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": doc["question"]}]}]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"exact_match": float(right(results[0], doc["answer"]))}
