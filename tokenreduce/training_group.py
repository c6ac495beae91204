"""The processes that train the same weights together, each on data of its own, as torch.distributed joined them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class TrainingGroup:
    """Which of how many processes this one is; every process calls the same methods in the same order.

    Attributes:
        rank: from 0; ``size``, how many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls) -> TrainingGroup:
        """As torch.distributed says. Errors: ``ValueError`` where several were launched and nobody joined them."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        launched = os.environ.get("WORLD_SIZE", "1")
        if launched != "1":
            raise ValueError(
                f"WORLD_SIZE={launched!r}, but the processes are not joined, so that each would train by itself; allowed: "
                "accelerate.Accelerator() or torch.distributed.init_process_group() before tr.train, or no WORLD_SIZE"
            )
        return cls()

    @classmethod
    @contextmanager
    def launched(cls) -> Iterator[TrainingGroup]:
        """The processes that accelerate or torchrun launched, joined for a ``with`` block, each with a device of its own."""
        if os.environ.get("WORLD_SIZE", "1") == "1" or dist.is_initialized():
            yield cls.joined()
            return
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group()
        try:
            yield cls.joined()
        finally:
            dist.destroy_process_group()

    def agree(self, what: str, value: object) -> None:
        """Raise where processes hold another ``value`` than the first."""
        if self.size == 1:
            return
        held: list[object] = [None] * self.size
        dist.all_gather_object(held, value)
        for rank, other in enumerate(held):
            if other != held[0]:
                raise ValueError(
                    f"{what} of process {rank} is {other!r}, not {held[0]!r}, as of process 0; allowed: the same settings and "
                    "files in all processes"
                )

    def total(self, number: int, like: Tensor) -> float:
        """The sum of all processes' ``number``, on the device of ``like``."""
        return float(self.summed(torch.tensor(float(number), device=like.device)))

    def summed(self, x: Tensor) -> Tensor:
        """``x`` is, and then holds, the sum over the processes."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Each gradient is the sum over the processes; one that no process has stays None."""
        if self.size == 1:
            return
        own = list(parameters)
        there = self.summed(torch.tensor([float(p.grad is not None) for p in own], device=own[0].device)).tolist()
        for parameter, count in zip(own, there, strict=True):
            if count:
                parameter.grad = self.summed(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()
