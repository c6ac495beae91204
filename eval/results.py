"""Files of results: never lost, never half written, never over somebody else's; and what they depend on."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenreduce.adapters.upstream.attention import implementation
from tokenreduce.files import replacing
from tokenreduce.timing import processor_name

if TYPE_CHECKING:
    import torch
    from torch import nn


def claim(out: Path, files: Sequence[str]) -> None:
    """Make the folder ``out``; raise if one of ``files`` is there and no earlier run of this command wrote it."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={str(out)!r} is a file; allowed: a folder. Choose another name")
    out.mkdir(parents=True, exist_ok=True)
    present = [name for name in files if (out / name).exists()]
    if not present:
        return
    try:
        ours = set(json.loads((out / "results.json").read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    foreign = [name for name in present if name not in ours]
    if foreign:
        raise ValueError(
            f"out={str(out)!r} holds {foreign[0]!r}, which no earlier run of this command wrote; "
            "choose an empty or new folder"
        )


def as_json(content: Any) -> str:
    """``content`` as indented JSON with a newline behind it; NaN and infinity, which JSON has not, as null."""
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON; readers see the old file or the new one, never a part. See ``tokenreduce.files.replacing``."""
    with replacing(path) as file:
        file.write(as_json(content).encode("utf-8"))


def _finite(content: Any) -> Any:
    """``content`` with null where JSON has no number."""
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def environment(model: nn.Module) -> dict[str, Any]:
    """Versions, hardware and attention backend that the numbers depend on."""
    parameter = next(model.parameters())
    return {
        **surroundings(parameter.device),
        "attention": implementation(model.config) if hasattr(model, "config") else None,
        "dtype": str(parameter.dtype).removeprefix("torch."),
    }


def surroundings(device: torch.device) -> dict[str, Any]:
    """Versions and hardware that numbers measured on ``device`` depend on."""
    import torch
    import transformers

    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(terse=True),
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
    }
