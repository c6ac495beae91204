"""Tensors that say they are on another device, so that every read back to the host is seen, on a CPU.

>>> model = moved(zoo.build("llava"))
>>> with recorded() as reads:
...     model(**{name: Elsewhere(x) for name, x in inputs.items()})
>>> [(read.what, read.place) for read in reads]

Operations run on the CPU behind them; what the host would wait for (an item, a list, a copy, a size that depends on values) is
noted with the innermost function of this package on the way to it. A copy to the device waits for what the device is doing
unless it says ``non_blocking``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("meta")  # the only other device that every build of torch knows
ROOT = Path(__file__).resolve().parent.parent
PASSING = {
    "call_scope.__call__",
    "method_calls.__call__",
    "features_ahead.__call__",
}  # stand around functions of the model, which run as they are
aten = torch.ops.aten
#: operations whose result, or the size of it, the host must wait for
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
}


class Elsewhere(Tensor):
    """A tensor on ``DEVICE``; its values, on the CPU, are seen by operations only."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), dtype=values.dtype, device=DEVICE
        )
        made.values = values
        return made

    def tolist(self) -> Any:
        note("tolist")
        return self.values.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        note("numpy")
        return self.values.numpy()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return carried_out(func, args, kwargs or {})


def on_host(data: Any) -> Any:
    """Nested lists with the numbers of tensors among them."""
    if isinstance(data, (list, tuple)):
        return [on_host(x) for x in data]
    return data.tolist() if isinstance(data, Elsewhere) else data


class _Made(TorchFunctionMode):
    """``torch.tensor`` fills tensors without an operation that could be seen."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.new_tensor and isinstance(args[0], Elsewhere):
            like = {"dtype": args[0].dtype, "device": args[0].device}
            return torch.tensor(*args[1:], **{**like, **kwargs})
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor):
            data, device = on_host(args[0]), kwargs.get("device")
            if device is not None and torch.device(device).type == DEVICE.type:
                note("made on the device of numbers on the host")
                return Elsewhere(func(data, *args[1:], **{**kwargs, "device": "cpu"}))
            return func(data, *args[1:], **kwargs)
        return func(*args, **kwargs)


class _Guard(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return carried_out(func, args, kwargs or {})


class Read(NamedTuple):
    """What was read, the function of this package that did or led to it, and its room; None where the model itself did."""

    what: str
    place: str | None
    room: str | None


_reads: list[Read] | None = None


def note(what: str) -> None:
    if _reads is None:
        return
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("adapters", "kernels", "tokenreduce"):
            place = f"{path.stem}.{frame.f_code.co_name}"
            if place not in PASSING:
                _reads.append(Read(what, place, path.relative_to(ROOT).parts[0]))
                return
        frame = frame.f_back
    _reads.append(Read(what, None, None))


def carried_out(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    flat: list[Elsewhere] = []

    def inner(x: Any) -> Any:
        if isinstance(x, Elsewhere):
            flat.append(x)
            return x.values
        return x

    given, named = tree_map(inner, (args, kwargs))
    device = named.get("device")
    if device is not None:
        named["device"] = torch.device("cpu")
    there = bool(flat) if device is None else torch.device(device).type == DEVICE.type
    if flat and func in WAITING:
        note(str(func))
    elif flat and func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in given[1]):
        note("index by bool")
    elif flat and not there:
        note("copy to the host")
    elif there and not flat and func is aten._to_copy.default and not named.get("non_blocking"):
        note("copy to the device")
    elif func is aten.copy_.default and len(flat) == 1 and len(given) < 3 and not named.get("non_blocking"):
        note("copy between host and device")
    out = func(*given, **named)
    if func._schema.is_mutable and flat:  # in place: the same tensor goes back
        return args[0] if isinstance(out, Tensor) else out
    return tree_map(lambda x: Elsewhere(x) if isinstance(x, Tensor) else x, out) if there else out


def moved(model: nn.Module) -> nn.Module:
    """``model`` with its weights elsewhere, in place."""
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            if p is not None:
                module._parameters[name] = nn.Parameter(Elsewhere(p.detach()), requires_grad=False)
        for name, b in list(module._buffers.items()):
            if b is not None:
                module._buffers[name] = Elsewhere(b)
    return model


@contextmanager
def recorded() -> Iterator[list[Read]]:
    """The reads of the ``with`` block, in order."""
    global _reads
    _reads = []
    try:
        with _Made(), _Guard(), patch("torch.is_autocast_enabled", lambda *_: False):  # which does not know this device
            yield _reads
    finally:
        _reads = None
