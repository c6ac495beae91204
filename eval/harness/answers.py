"""How many tokens were written, answer by answer."""

from __future__ import annotations

from typing import Any

import torch


def new_tokens(answers: torch.Tensor, batch: int, ends: set[int], pad: int | None) -> list[int]:
    """Tokens written for each of ``batch`` prompts, all its answers together: up to the first of ``ends``, that included.

    ``answers`` (B * R, n) are R per prompt, filled up with ``pad`` behind their ends.
    """
    counts = []
    for row in answers.tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in ends), None)
        if end is None:  # cut at the longest allowed, or at a stop string
            end = next((i for i in range(len(row), 0, -1) if row[i - 1] != pad), 0)
        counts.append(end)
    each = max(len(counts) // batch, 1)
    return [sum(counts[i * each : (i + 1) * each]) for i in range(batch)]


def ends(model: Any, arguments: dict[str, Any]) -> tuple[set[int], int | None]:
    """Ids that end an answer, and the one that fills it up, as ``generate`` finds them."""
    configs = [c for c in (arguments.get("generation_config"), model.generation_config) if c is not None]

    def asked(name: str) -> Any:
        found = (x for x in (arguments.get(name), *(getattr(c, name, None) for c in configs)) if x is not None)
        return next(found, None)

    eos = asked("eos_token_id")
    ids = {eos} if isinstance(eos, int) else set(torch.as_tensor([] if eos is None else eos).flatten().tolist())
    return ids, asked("pad_token_id")
