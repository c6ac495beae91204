"""Where a run of training is: weights, optimizer and losses in one safetensors file, written whole or not at all."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from tokenreduce.files import writing
from tokenreduce.headed_tensors import SUFFIX, packed, unpacked
from tokenreduce.weights import Header

KIND = "tokenreduce training"
MODULE, OPTIMIZER = "module.", "optimizer."


def save_state(
    path: Path, header: Header, module: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float]
) -> None:
    """Write where the run that ``header`` tells of is."""
    tensors: dict[str, Tensor] = {f"{MODULE}{name}": x for name, x in module.state_dict().items()}
    for index, own in optimizer.state_dict()["state"].items():
        tensors |= {f"{OPTIMIZER}{index}.{name}": torch.as_tensor(x) for name, x in own.items()}
    said = {"run": dataclasses.asdict(header), "losses": losses}
    with writing(path, (SUFFIX,), overwrite=True) as file:
        file.write(packed(KIND, said, {name: x.detach().cpu().contiguous() for name, x in tensors.items()}))


def load_state(path: Path | None, header: Header, module: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    """Bring ``module`` and ``optimizer`` to where the file says, if it is there; returns the losses so far.

    Errors: ``ValueError`` for a file of another run, naming what differs.
    """
    if path is None:
        return []
    if path.suffix.lower() != SUFFIX:
        raise ValueError(f"checkpoint={str(path)!r}; allowed: a file name ending in {SUFFIX}")
    if not path.is_file():
        return []
    said, tensors = unpacked(path, KIND)
    own, run = flat(dataclasses.asdict(header)), flat(said["run"])
    differs = [
        f"{name} {run.get(name)!r}, not {own.get(name)!r}" for name in own | run if own.get(name) != run.get(name)
    ]
    if differs:
        raise ValueError(
            f"checkpoint={str(path)!r} is of another run: {'; '.join(differs[:4])}; allowed: the same settings, or another file"
        )
    module.load_state_dict({n.removeprefix(MODULE): x for n, x in tensors.items() if n.startswith(MODULE)})
    state: dict[int, dict[str, Tensor]] = {}
    for name, x in tensors.items():
        if name.startswith(OPTIMIZER):
            index, _, key = name.removeprefix(OPTIMIZER).partition(".")
            state.setdefault(int(index), {})[key] = x
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return list(said["losses"])


def follow(optimizer: torch.optim.Optimizer) -> None:
    """Bring what the optimizer holds of each parameter to where that is: a module that learns moves when it first runs."""
    for parameter, own in optimizer.state.items():
        own |= {
            n: x.to(parameter.device) for n, x in own.items() if isinstance(x, Tensor) and x.shape == parameter.shape
        }


def flat(content: dict[str, object], before: str = "") -> dict[str, object]:
    """Values by their path; sequences are lists, as JSON has them."""
    found: dict[str, object] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            found |= flat(value, f"{before}{name}.")
        else:
            found[before + name] = list(value) if isinstance(value, tuple) else value
    return found
