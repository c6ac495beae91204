"""FLOPs of modules whose weights do not tell them: their operations are counted the first time that a shape passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tokenreduce.per_thread import PerThread, nothing

Shapes = tuple[torch.Size, ...]


class Operations(TorchDispatchMode):
    """FLOPs of the operations that run meanwhile, by the formulas of `torch.utils.flop_counter`, without its hooks on modules."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:  # under inference mode, operations come before they are taken apart
            with self:
                output = func.decompose(*args, **kwargs)
            if output is not NotImplemented:
                return output
        output = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=output)
        return output


class CountedFlops:
    """Tells ``add`` the FLOPs of every call of one module."""

    running = PerThread[Operations | None](nothing)

    def __init__(self, add: Callable[[int], None]) -> None:
        self.add = add
        self.known: dict[Shapes, int] = {}

    def attach(self, module: nn.Module, handles: list[Any]) -> None:
        handles.append(module.register_forward_pre_hook(self.enter, with_kwargs=True))
        handles.append(module.register_forward_hook(self.leave, with_kwargs=True, always_call=True))

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling() and shapes_of(args, kwargs) not in self.known:
            self.running = Operations()
            self.running.__enter__()

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        counter, self.running = self.running, None
        shapes = shapes_of(args, kwargs)
        if counter is not None:
            counter.__exit__(None, None, None)
            if output is not None:  # None where the module raised
                self.known[shapes] = counter.total
        if shapes in self.known:
            self.add(self.known[shapes])


def shapes_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Shapes:
    return tuple(x.shape for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
