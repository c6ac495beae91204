"""Surroundings of the kernel tests: a materialised reference, a meter of tensor sizes, no luck with empty buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from tokenreduce.kernels import dispatch


class Meter(TorchDispatchMode):
    """Notes the largest number of elements of any tensor that an operation makes."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view:
            self.largest = max(self.largest, out.untyped_storage().nbytes() // out.element_size())
        return out


@pytest.fixture(autouse=True)
def poisoned_buffers() -> Iterator[None]:
    """``torch.empty`` hands out NaN (floats) or the largest integer, never a lucky zero."""
    before, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before, warn_only=warn)


@pytest.fixture(scope="session")
def attention_map() -> Callable[..., Tensor]:
    """The textbook form: the whole map (B, H, Q, N) in float64."""

    def materialise(query: Tensor, key: Tensor, scale: float, allowed: Tensor | None = None) -> Tensor:
        key = key.double().repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        logits = torch.einsum("bhqd,bhnd->bhqn", query.double(), key) * scale
        if allowed is not None:
            logits = logits.masked_fill(~allowed[:, None], -torch.inf)
        return logits.softmax(dim=-1)

    return materialise


@pytest.fixture
def on_kernel() -> Callable[..., Any]:
    """Call an operation with its Triton kernel: compiled on a GPU where there is one, else in Triton's interpreter.

    Tensors go to the device and back, and the dispatcher must really have chosen the kernel.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def move(value: Any, to: str) -> Any:
        return tree_map(lambda x: x.to(to) if isinstance(x, Tensor) else x, value)

    def call(operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with dispatch.backend("triton"), dispatch.explained() as choices:
            found = operation(*move(args, device), **move(kwargs, device))
        assert {choice.backend for choice in choices.values()} == {"triton"}
        return move(found, "cpu")

    return call


@pytest.fixture
def meter() -> Meter:
    return Meter()
