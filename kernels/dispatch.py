"""Which implementation of an operation runs, the reference or the Triton kernel, and why.

``auto``: the kernel on a GPU wherever it serves the dtype and the shape, the reference anywhere else. The environment
variable ``TOKENREDUCE_KERNELS`` or ``with backend("reference"):`` asks for one of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from types import ModuleType
from typing import Literal, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
Backend = Literal["auto", "reference", "triton"]
BACKENDS = ("auto", "reference", "triton")
VARIABLE = "TOKENREDUCE_KERNELS"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Choice(NamedTuple):
    """What runs, ``reference`` or ``triton``, and the reason in words."""

    backend: Literal["reference", "triton"]
    reason: str


_asked: ContextVar[Backend | None] = ContextVar("asked", default=None)
_notes: ContextVar[dict[str, Choice] | None] = ContextVar("notes", default=None)


def operation(run: Callable[P, R]) -> Callable[P, R]:
    """An operation as methods call it: also under ``torch.autocast`` it counts in the dtypes that it says.

    Its first argument is a tensor. Autocast would turn products of float32 into half precision, in which scores tie in
    masses.
    """

    @wraps(run)
    def in_own_dtypes(*args: P.args, **kwargs: P.kwargs) -> R:
        device = args[0].device.type  # type: ignore[attr-defined]
        if not torch.is_autocast_enabled(device):
            return run(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return run(*args, **kwargs)

    return in_own_dtypes


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Ask for ``reference``, ``triton`` or ``auto`` inside the block, whatever the environment says.

    Errors: ``ValueError`` for another name; inside, for what ``triton`` cannot serve.
    """
    token = _asked.set(_checked(name, "name"))
    try:
        yield
    finally:
        _asked.reset(token)


@contextmanager
def explained() -> Iterator[dict[str, Choice]]:
    """Collect the last choice of every operation that runs inside the block.

    >>> from tokenreduce.kernels.energy_score import energy_score
    >>> with explained() as choices:
    ...     _ = energy_score(torch.ones(1, 4, 2), margin=0.5)
    >>> choices["energy_score"]
    Choice(backend='reference', reason='the tensors are on cpu')
    """
    notes: dict[str, Choice] = {}
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def kernel(operation: str, *tensors: Tensor, limit: str | None = None, graph: bool = False) -> ModuleType | None:
    """The module ``tokenreduce.kernels.triton.<operation>`` where its kernel is to run on ``tensors``, else None.

    Args:
        operation: stem of the operation.
        tensors: its float inputs.
        limit: why the kernel does not serve these shapes or arguments; None: it does.
        graph: True where the reference is differentiable; the kernel is not, and is left out while gradients flow.

    Errors: ``ValueError`` when ``triton`` was asked for and cannot serve.
    """
    notes = _notes.get()
    if notes is None and tensors[0].device.type == "cpu" and _asked.get() is None and VARIABLE not in os.environ:
        return None  # the usual case on a CPU, at the price of few looks
    choice = choose(*tensors, limit=limit, graph=graph)
    if notes is not None:
        notes[operation] = choice
    if choice.backend == "reference":
        return None
    return importlib.import_module(f"tokenreduce.kernels.triton.{operation}")


def choose(*tensors: Tensor, limit: str | None = None, graph: bool = False) -> Choice:
    """The choice for ``tensors``, with the arguments and errors of ``kernel``."""
    asked = _asked.get() or _checked(os.environ.get(VARIABLE, "auto"), VARIABLE)
    if asked == "reference":
        return Choice("reference", "it was asked for")
    obstacle = _obstacle(tensors, limit, graph)
    if asked == "auto":
        if tensors[0].device.type != "cuda":
            return Choice("reference", f"the tensors are on {tensors[0].device.type}")
        return Choice("triton", "the tensors are on a GPU") if obstacle is None else Choice("reference", obstacle)
    if obstacle is not None:
        raise ValueError(
            f"backend='triton' cannot serve this call: {obstacle}; ask for 'auto', which takes the reference here, or "
            f"unset {VARIABLE}"
        )
    return Choice("triton", "it was asked for")


def _obstacle(tensors: tuple[Tensor, ...], limit: str | None, graph: bool) -> str | None:
    first = tensors[0]
    if not installed():
        return "triton is not installed (pip install triton)"
    if first.device.type != "cuda" and not interpreted():
        return (
            f"the tensors are on {first.device.type}, where Triton runs only in its interpreter (TRITON_INTERPRET=1, set "
            "before Python starts)"
        )
    if any(t.device != first.device for t in tensors):
        return f"the tensors are on several devices, {sorted({str(t.device) for t in tensors})}"
    if any(t.dtype not in DTYPES for t in tensors):
        return f"the dtypes {sorted({str(t.dtype) for t in tensors})} are not float32, float16 or bfloat16"
    if torch.compiler.is_compiling():
        return "torch.compile fuses the reference itself"
    if graph and torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return "gradients are wanted"
    if any(t.numel() == 0 for t in tensors):
        return "there is nothing to do"
    return limit


def one_dtype(*tensors: Tensor) -> str | None:
    """A ``limit`` for kernels whose operands share a dtype."""
    return None if len({t.dtype for t in tensors}) == 1 else f"dtypes differ, {[str(t.dtype) for t in tensors]}"


@cache
def installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python on any tensor; decided when a kernel is first imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def _checked(name: str, argument: str) -> Backend:
    if name not in BACKENDS:
        raise ValueError(f"{argument}={name!r}; allowed: {', '.join(map(repr, BACKENDS))}")
    return name  # type: ignore[return-value]
