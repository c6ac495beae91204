"""Where cells run: processes of this machine. A worker that dies takes one cell with it and is replaced."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

from .cell import Cell
from .evaluator import Outcome


class Pool(Protocol):
    """Evaluates what is in a queue, which may be added to meanwhile, and yields each cell with its outcome."""

    slots: int

    def run(self, queue: deque[Cell]) -> Iterator[tuple[Cell, Outcome]]: ...


class _Worker:
    """A process that answers cells through its standard input and output; what it prints goes to ``log``.

    A thread waits for each answer, since not every system can wait for several pipes at once.
    """

    def __init__(self, program: str, number: int, slots: int, log: Path) -> None:
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", program, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=_environment(number, slots),
            )
        self.number, self.log = number, log

    def start(self, cell: Cell, answers: SimpleQueue[Answer]) -> None:
        """Put (this worker, ``cell``, its outcome or None if the process ended) into ``answers`` when it is there."""
        threading.Thread(target=lambda: answers.put((self, cell, self._answer(cell))), daemon=True).start()

    def _answer(self, cell: Cell) -> Outcome | None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            pickle.dump(cell.as_dict(), self.process.stdin)
            self.process.stdin.flush()
            outcome: Outcome = pickle.load(self.process.stdout)
            return outcome
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            return None

    def why_it_ended(self) -> Outcome:
        code = self.process.wait()
        why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = "; the system kills what takes too much memory" if why.endswith("SIGKILL") else ""
        tail = self.log.read_text(errors="replace")[-3000:]
        return Outcome(error={"kind": "died", "text": f"the worker process ended with {why}{hint}", "traceback": tail})

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


Answer = tuple[_Worker, Cell, Outcome | None]


class Processes:
    """``slots`` worker processes, each with the model loaded; with several GPUs each worker has its own.

    ``logs``: folder for what the workers print; ``program``: the module that is run as a worker.
    """

    def __init__(self, slots: int, logs: Path, program: str = "tokenreduce.eval.sweep.worker") -> None:
        self.slots, self.logs, self.program = slots, logs, program

    def run(self, queue: deque[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        self.logs.mkdir(parents=True, exist_ok=True)
        idle: list[_Worker] = []
        busy: dict[int, _Worker] = {}
        answers: SimpleQueue[Answer] = SimpleQueue()
        try:
            while queue or busy:
                while queue and len(busy) < self.slots:
                    worker = idle.pop() if idle else self._new(set(busy))
                    busy[worker.number] = worker
                    worker.start(queue.popleft(), answers)
                worker, cell, outcome = answers.get()
                del busy[worker.number]
                if outcome is None:
                    outcome = worker.why_it_ended()
                else:
                    idle.append(worker)
                yield cell, outcome
        finally:
            for worker in (*idle, *busy.values()):
                worker.stop()

    def _new(self, taken: set[int]) -> _Worker:
        number = next(n for n in range(self.slots) if n not in taken)
        return _Worker(self.program, number, self.slots, self.logs / f"worker-{number}.log")


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
