"""Times taken on this machine, kept in a small file, so that the same question is not timed twice."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import logging
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenreduce.files import cache_folder
from tokenreduce.timing import processor_name

if TYPE_CHECKING:
    from torch import nn

    from tokenreduce.method import Method

log = logging.getLogger(__name__)


def measured_file() -> Path:
    """Where the times are: ``tokenreduce/measured.jsonl`` below ``XDG_CACHE_HOME``, by default ``~/.cache``; a line for each."""
    return cache_folder() / "measured.jsonl"


def clear_measured() -> None:
    """Forget every time that ``tr.budget_for(..., measured=True)`` has kept on this machine."""
    measured_file().unlink(missing_ok=True)


def conditions(model: nn.Module, inputs: Any, method: Method) -> dict[str, Any]:
    """All that a time depends on: model, device, dtypes, shapes of the prompt, method with its source, versions.

    Weights are not looked at: what they are changes no time.
    """
    import torch

    from tokenreduce.adapters.upstream.attention import implementation

    parameters = {name: [*p.shape, str(p.dtype)] for name, p in model.named_parameters()}
    device = next(model.parameters()).device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    given = inputs if isinstance(inputs, Mapping) else {"pixels": inputs}
    own = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.name != "keep"}
    try:
        source = _digest(inspect.getsource(type(method)))
    except (OSError, TypeError):
        source = ""  # made where there is no file, as in a shell
    return {
        "model": type(model).__name__,
        "parameters": _digest(json.dumps(parameters)),
        "attention": implementation(model.config) if hasattr(model, "config") else "",
        "device": f"{device.type}, {where}",
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "dtypes": sorted({str(p.dtype) for p in model.parameters()}),
        "inputs": {
            name: [*x.shape, str(x.dtype)] if isinstance(x, torch.Tensor) else repr(x) for name, x in given.items()
        },
        "method": {"name": method.name, "source": source, **{name: repr(value) for name, value in own.items()}},
        "versions": {name: version(name) for name in ("tokenreduce", "torch", "transformers")},
    }


def known(question: Mapping[str, Any]) -> float | None:
    """What was measured under ``question``, the latest; None: nothing yet. Lines that are no measurement are passed over."""
    try:
        lines = measured_file().read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    key = _key(question)
    for line in reversed(lines):
        if key in line:
            try:
                found = json.loads(line)
                return float(found["value"]) if found["key"] == key else None
            except (ValueError, KeyError, TypeError):
                continue
    return None


def note(question: Mapping[str, Any], value: float) -> None:
    """Keep ``value`` under ``question``: one write behind what others wrote, so that processes lose nothing of each other."""
    line = json.dumps({"key": _key(question), "value": value, "question": question})
    try:
        measured_file().parent.mkdir(parents=True, exist_ok=True)
        file = os.open(measured_file(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, f"\n{line}\n".encode())  # a line that was cut off before ends here
        finally:
            os.close(file)
    except OSError as error:
        log.info("%s cannot be written (%s); what was measured is not kept", measured_file(), error.strerror)


def _key(question: Mapping[str, Any]) -> str:
    return _digest(json.dumps(question, sort_keys=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]
