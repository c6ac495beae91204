"""Where cells run: actors of a Ray cluster, one per GPU or per CPU. Only the sweep's own process writes results."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from .cell import Cell
from .evaluator import Evaluator, Outcome

PASSED_ON = ("HF_", "TOKENREDUCE_", "OMP_", "XDG_CACHE_HOME")  # variables that the actors need as they are here


class _Remote(Evaluator):
    """Takes cells as plain values: a method of one's own is found by its place, where no other process knows its class."""

    def answer(self, cell: dict[str, Any]) -> Outcome:
        return self.evaluate(Cell.from_dict(cell))


class Actors:
    """Evaluators on a cluster, each with the model loaded.

    ``address``: ``local`` starts Ray on this machine, ``auto`` joins the one that runs on it, ``ray://host:port`` a cluster;
    ``slots``: evaluators, by default one per GPU, or per CPU where there are none.

    Errors: ``ValueError`` when Ray is not installed or not reached.
    """

    def __init__(self, address: str = "local", slots: int | None = None) -> None:
        if find_spec("ray") is None:
            raise ValueError("Ray is not installed; run: pip install 'tokenreduce[ray]', or leave --ray out")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        if not ray.is_initialized():
            try:
                ray.init(
                    address=address,
                    num_cpus=slots if address == "local" else None,
                    include_dashboard=False if address == "local" else None,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env={"env_vars": variables},
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ValueError(
                    f"ray={address!r} is not reached ({' '.join(str(error).split())[:200]}); allowed: local, auto, or the "
                    "address of a running cluster such as ray://host:10001"
                ) from error
        have = ray.cluster_resources()
        gpus = int(have.get("GPU", 0))
        self.slots = slots or gpus or int(have.get("CPU", 1))
        self._actor: Any = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(_Remote)

    def run(self, queue: deque[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        import ray

        idle: list[Any] = []
        busy: dict[Any, tuple[Any, Cell]] = {}
        try:
            while queue or busy:
                while queue and len(busy) < self.slots:
                    actor, cell = idle.pop() if idle else self._actor.remote(), queue.popleft()
                    busy[actor.answer.remote(cell.as_dict())] = actor, cell
                (done, *_), _ = ray.wait(list(busy))
                actor, cell = busy.pop(done)
                try:
                    outcome = ray.get(done)
                    idle.append(actor)
                except ray.exceptions.RayError as error:
                    text = " ".join(str(error).split())[:500]
                    outcome = Outcome(error={"kind": "died", "text": f"the Ray actor ended: {text}", "traceback": text})
                yield cell, outcome
        finally:
            for actor in (*idle, *(actor for actor, _ in busy.values())):
                ray.kill(actor)
