"""What a caller says of prompts beside their ids: where they end, and in words what they ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tokenreduce.attachment import attachment_of

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def prompt_length(model: nn.Module, columns: int | Sequence[int]) -> Iterator[None]:
    """Tell how long the prompts are, where an answer stands behind them in the same row.

    Methods that rank tokens by the question (``fastv``, ``mustdrop``, ``holitom`` inside the language model) look at
    what comes before. ``generate`` and ``labels`` tell by themselves; scoring given answers does not. The same can be
    said in the call: ``model(**inputs, prompt_length=n)``.

    Args:
        columns: of the prompt, padding included; one number, or one per sample.

    Errors: ``ValueError`` at the call when it is no number of columns, has a wrong number of entries, or ends before the
        last visual token.

    Example: ``with tr.prompt_length(model, prompt["input_ids"].shape[1]): model(**prompt_and_answer)``
    """
    hooks = attachment_of(model).hooks
    if not hasattr(hooks, "scopes"):
        raise ValueError("prompt_length is about the prompt of a language model; this is an encoder by itself")
    with hooks.scopes.prompt_length(columns):
        yield


@contextmanager
def question(model: nn.Module, texts: str | Sequence[str]) -> Iterator[None]:
    """Tell in words what pictures are asked, for methods that are given a text tower to read it (``cdpruner``).

    The same can be said in the call: ``model.generate(**inputs, question=texts)``.

    Args:
        texts: the question without template words; one for all samples, or one per sample. An empty one asks nothing.

    Errors: ``TypeError`` for anything but texts; ``ValueError`` at the call for a wrong number of them.

    Example: ``with tr.question(model, ["What is on the table?"]): model.generate(**inputs)``
    """
    hooks = attachment_of(model).hooks
    if not hasattr(hooks, "scopes"):
        raise ValueError("question is about the prompt of a language model; this is an encoder by itself")
    with hooks.scopes.question(texts):
        yield
