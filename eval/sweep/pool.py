"""Where cells run: processes of this machine. A worker that dies takes one cell with it and is replaced."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

from .cell import Cell
from .evaluator import Outcome


class Pool(Protocol):
    """Evaluates what is in a queue, which may be added to meanwhile, and yields each cell with its outcome."""

    slots: int

    def run(self, queue: deque[Cell]) -> Iterator[tuple[Cell, Outcome]]: ...


class _Worker:
    def __init__(self, program: str, number: int, slots: int, log: Path) -> None:
        ours, theirs = socket.socketpair()
        with log.open("ab") as file, theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", program, str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=_environment(number, slots),
            )
        self.connection = Connection(ours.detach())
        self.cell: Cell | None = None

    def start(self, cell: Cell) -> None:
        self.cell = cell
        self.connection.send(cell.as_dict())

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


class Processes:
    """``slots`` worker processes, each with the model loaded; with several GPUs each worker has its own.

    ``logs``: folder for what the workers print; ``program``: the module that is run as a worker.
    """

    def __init__(self, slots: int, logs: Path, program: str = "tokenreduce.eval.sweep.worker") -> None:
        self.slots, self.logs, self.program = slots, logs, program

    def run(self, queue: deque[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        self.logs.mkdir(parents=True, exist_ok=True)
        workers: dict[int, _Worker] = {}
        try:
            while True:
                for number in range(self.slots):
                    if queue and (number not in workers or workers[number].cell is None):
                        if number not in workers:
                            workers[number] = _Worker(self.program, number, self.slots, self._log(number))
                        workers[number].start(queue.popleft())
                busy = {worker.connection: number for number, worker in workers.items() if worker.cell is not None}
                if not busy:
                    return
                for connection in wait(list(busy)):
                    worker = workers[busy[connection]]  # type: ignore[index]
                    cell, worker.cell = worker.cell, None
                    assert cell is not None
                    try:
                        outcome = worker.connection.recv()
                    except (EOFError, ConnectionError):
                        outcome = self._died(workers.pop(busy[connection]), self._log(busy[connection]))  # type: ignore[index]
                    yield cell, outcome
        finally:
            for worker in workers.values():
                worker.stop()

    def _log(self, number: int) -> Path:
        return self.logs / f"worker-{number}.log"

    def _died(self, worker: _Worker, log: Path) -> Outcome:
        code = worker.process.wait()
        why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = "; the system kills what takes too much memory" if code == -signal.SIGKILL else ""
        worker.connection.close()
        tail = log.read_text(errors="replace")[-3000:]
        return Outcome(error={"kind": "died", "text": f"the worker process ended with {why}{hint}", "traceback": tail})


def _environment(number: int, slots: int) -> dict[str, str]:
    found = dict(os.environ)
    if slots > 1:
        found.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // slots)))
        import torch

        devices = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(
            ","
        )
        if devices[0]:
            found["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    return found
