"""What the test tasks' YAML files point at: scores that are no mean of 0 and 1, on the demo model's questions."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from tokenreduce.eval.data import documents, parquet
from tokenreduce.eval.demo import right


def __getattr__(name):
    """``images``, ``crowd``: the path of the set's parquet file; ``questions``: of a file beside this one."""
    if name == "questions":
        return str(Path(__file__).with_name("questions.json"))
    if name not in ("images", "crowd"):
        raise AttributeError(name)
    return str(parquet(name))


def doc_to_visual(doc):
    pictures = doc["pictures"] if "pictures" in doc else next(islice(documents("images"), doc["number"], None))[0]
    return [picture.convert("RGB") for picture in pictures]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return (lmms_eval_specific_kwargs or {}).get("ask") or doc["question"]


def doc_to_messages(doc, lmms_eval_specific_kwargs=None):
    content = [{"type": "image", "url": picture} for picture in doc_to_visual(doc)]
    return [
        {"role": "user", "content": [*content, {"type": "text", "text": doc_to_text(doc, lmms_eval_specific_kwargs)}]}
    ]


def right_or_wrong(doc, results):
    return {"exact_match": float(right(results[0], doc["answer"]))}


def error(doc, results):
    return {"error": 1.0 - float(right(results[0], doc["answer"]))}


def points(doc, results):
    name = "number" if doc["kind"] in ("count", "read") else "look"
    return {name: {"category": doc["kind"], "score": float(right(results[0], doc["answer"]))}}


def sum_of_categories(entries):
    """100 for every category that is all right."""
    found = {}
    for entry in entries:
        found.setdefault(entry["category"], []).append(entry["score"])
    return sum(100 * sum(scores) / len(scores) for scores in found.values())
