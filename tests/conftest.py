"""Options, markers and the quiet surroundings every test runs in: offline, seeded, one thread per worker."""

from __future__ import annotations

import os
from contextlib import suppress

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports transformers

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton: its kernels run in Python then

import tokenreduce.method
from tokenreduce import pytest_plugin
from tokenreduce.eval import tiny_models


def pytest_addoption(parser: pytest.Parser) -> None:
    with suppress(ValueError):  # the installed package brings the option itself
        pytest_plugin.pytest_addoption(parser)


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "long" not in config.option.markexpr:
        brief = {id(item) for item in items if is_brief(item)}
        config.hook.pytest_deselected(items=[item for item in items if id(item) in brief])
        items[:] = [item for item in items if id(item) not in brief]
        for item in items:
            if "long" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes; run with -m long"))
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; torch.cuda.is_available() is False here")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


def is_brief(item: pytest.Item) -> bool:
    """Whether a test is one more of its kind, of a family whose ways are those of others."""
    key = getattr(item, "callspec", None) and item.callspec.params.get("key")
    family = tiny_models.KNOWN.get(key) if isinstance(key, str) else None
    return family is not None and family.brief and "every_family" not in item.keywords


@pytest.fixture(autouse=True)
def looks_at_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every test the first plan of a method at a place is looked through, whatever ran before it."""
    monkeypatch.setattr(tokenreduce.method, "_LOOKED_AT", set())


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)
