"""What all kernels share: nothing waits for the device, a CUDA graph can hold them, and sizes go to 16,384 tokens."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.attention_received import attention_received
from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.kernels.bipartite_matching import bipartite_matching
from tokenreduce.kernels.compaction import compact
from tokenreduce.kernels.density_peaks import density_peaks
from tokenreduce.kernels.energy_score import energy_score
from tokenreduce.kernels.greedy_selection import dpp_selection, max_min_selection
from tokenreduce.kernels.group_mean import group_mean
from tokenreduce.kernels.temporal_similarity import temporal_similarity

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}


class NoWaiting(TorchDispatchMode):
    """Fails at an operation whose result the host must have before it can go on."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        assert name not in WAITING, f"{name} waits for the device"
        assert not by_mask, "a boolean index waits for the device"
        return func(*args, **(kwargs or {}))


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def index(n: int, *shape: int) -> Tensor:
    return torch.randint(n, shape, generator=torch.Generator().manual_seed(n))


def borders(n: int) -> Tensor:
    """Segments of 64 tokens, and what is left."""
    return torch.tensor([*range(0, n, 64), n], dtype=torch.int32)


def packed(query: Tensor, key: Tensor, cuts: Tensor, mask: Tensor) -> Tensor:
    return attention_received(query, key, 0.25, cuts=cuts, query_mask=mask)


def weighted(x: Tensor, weight: Tensor, first: Tensor) -> Tensor:
    return max_min_selection(x, 5, weight=weight, first=first)


#: operation and arguments for n tokens
CALLS: dict[str, Callable[[int], tuple[Any, ...]]] = {
    "bipartite_matching": lambda n: (bipartite_matching, draw(2, n, 16), draw(2, n - 1, 16)),
    "energy_score": lambda n: (energy_score, draw(2, n, 16), 0.4),
    "attention_row": lambda n: (attention_row, draw(2, 4, 1, 16), draw(2, 2, n, 16), 0.25),
    "attention_received": lambda n: (attention_received, draw(2, 4, n, 16), draw(2, 2, n, 16), 0.25),
    "packed": lambda n: (packed, draw(1, 4, n, 16), draw(1, 2, n, 16), borders(n), index(2, 1, n) > 0),
    "max_min_selection": lambda n: (max_min_selection, draw(2, n, 16), 5),
    "weighted_selection": lambda n: (weighted, draw(2, n, 16), draw(2, n).abs(), index(n, 2)),
    "dpp_selection": lambda n: (dpp_selection, draw(2, n, 16), draw(2, n).abs(), 5),
    "density_peaks": lambda n: (density_peaks, draw(2, n, 16), 5, 3),
    "temporal_similarity": lambda n: (temporal_similarity, draw(3, n, 16)),
    "group_mean": lambda n: (group_mean, draw(2, n, 16), index(7, 2, n) - 1, 6, draw(2, n).abs()),
    "compact": lambda n: (compact, draw(2, n, 16), index(n, 2, 5), index(2, 2, 5) > 0),
}


def flat(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


@pytest.mark.parametrize("name", CALLS)
def test_no_kernel_waits_for_the_device(name, on_kernel, monkeypatch) -> None:
    operation, *arguments = CALLS[name](70)
    monkeypatch.setattr(Tensor, "tolist", lambda x: pytest.fail("tolist waits for the device"))  # unseen on a CPU
    with NoWaiting():
        on_kernel(operation, *arguments)


def test_waiting_is_noticed() -> None:
    for wait in (lambda x: x.item(), lambda x: x.nonzero(), lambda x: x.expand(3)[torch.tensor([True, False, True])]):
        with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
            wait(torch.ones(1))


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALLS)
def test_a_cuda_graph_holds_every_kernel(name) -> None:
    operation, *arguments = CALLS[name](577)
    arguments = [x.cuda() if isinstance(x, Tensor) else x for x in arguments]
    with dispatch.backend("triton"), torch.inference_mode():
        expected = flat(operation(*arguments))  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = flat(operation(*arguments))
        for x in found:
            x.zero_()
        graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


SQUARE = ("energy_score", "max_min_selection", "weighted_selection", "dpp_selection", "density_peaks")
LARGE = 16_384


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in CALLS if name != "attention_received"])
def test_sixteen_thousand_tokens(name, on_kernel) -> None:
    operation, *arguments = CALLS[name](LARGE)
    if name == "bipartite_matching":  # either side of it: all pairs would take minutes in the interpreter
        for a, b in ((arguments[0], arguments[1][:, :40]), (arguments[0][:, :40], arguments[1])):
            best, partner = on_kernel(operation, a, b)
            expected, who = operation(a, b)
            torch.testing.assert_close(best, expected, rtol=0, atol=2e-6)
            assert (partner == who).double().mean() > 0.999  # near ties
        return
    arguments = [x[:1] if isinstance(x, Tensor) and name in SQUARE else x for x in arguments]
    for a, b in zip(flat(on_kernel(operation, *arguments)), flat(operation(*arguments))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_sixteen_thousand_keys_receive_attention(on_kernel) -> None:
    query, key = draw(1, 2, 40, 16), draw(1, 2, LARGE, 16)
    found = on_kernel(attention_received, query, key, 0.25)
    torch.testing.assert_close(found, attention_received(query, key, 0.25), rtol=1e-4, atol=1e-9)
    found = on_kernel(attention_received, key, query, 0.25)
    torch.testing.assert_close(found, attention_received(key, query, 0.25), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CALLS)
def test_autocast_changes_nothing(name) -> None:
    operation, *arguments = CALLS[name](40)
    with dispatch.backend("reference"):
        expected = flat(operation(*arguments))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = flat(operation(*arguments))
    for x, want in zip(found, expected, strict=True):
        assert x.dtype == want.dtype
        assert torch.equal(x, want)


def test_what_asks_the_dispatcher_leaves_autocast_outside(request) -> None:
    asking = [
        path for path in (request.config.rootpath / "kernels").glob("*.py") if "dispatch.kernel(" in path.read_text()
    ]
    assert len(asking) > 7
    for path in asking:
        module = importlib.import_module(f"tokenreduce.kernels.{path.stem}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and "dispatch.kernel(" in inspect.getsource(function):
                assert hasattr(function, "__wrapped__"), f"{path.stem}.{name} lacks @dispatch.operation"
