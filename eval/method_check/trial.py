"""One method on the tiny models of one family: every contract is tried, and whatever is raised becomes a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

import tokenreduce as tr
from tokenreduce.eval import tiny_models
from tokenreduce.method import Method

from .contracts import CONTRACTS, Broken, Setting, Skipped

Verdict = Literal["right", "wrong", "refused", "skipped"]


@dataclass(frozen=True)
class Result:
    """The ``verdict`` on a ``contract`` in one ``family``; ``detail`` says what was wrong, refused, or why it was left out."""

    contract: str
    family: str
    verdict: Verdict
    detail: str = ""


def trials(key: str, method: Method) -> list[Result]:
    """Every contract in the family ``key``."""
    model, bare = tiny_models.build(key), tiny_models.build(key, "eager")
    kind = "mixed" if "image" in method.media else "videos"
    if kind not in tiny_models.kinds(key):
        return [Result(name, key, "skipped", f"it reduces videos, and {key} takes none") for name in CONTRACTS]
    case = tiny_models.case(key, kind, model, plain="encoder" in method.stages)
    with torch.no_grad():
        model(**case.inputs)  # transformers installs hooks of its own, once, in the first forward pass
    setting = Setting(key, method, model, bare, case)
    try:
        tr.wrap(model, method)
    except (TypeError, ValueError) as error:
        return [Result(name, key, "refused", plain(error)) for name in CONTRACTS]
    tr.unwrap(model)
    return [Result(name, key, *verdict(contract, setting)) for name, contract in CONTRACTS.items()]


def verdict(contract: Any, setting: Setting) -> tuple[Verdict, str]:
    try:
        contract(setting)
    except Skipped as reason:
        return "skipped", plain(reason)
    except Broken as fault:
        return "wrong", plain(fault)
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {plain(error)}"
    finally:
        if tr.is_wrapped(setting.model):
            tr.unwrap(setting.model)
    return "right", ""


def plain(error: Exception) -> str:
    return " ".join(str(error).split())
