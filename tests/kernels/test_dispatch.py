"""The dispatcher: what runs, why, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from tokenreduce.kernels import dispatch
from tokenreduce.kernels.compaction import compact
from tokenreduce.kernels.energy_score import energy_score

HERE = torch.ones(1, 4, 3)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch) -> None:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)


def test_a_cpu_takes_the_reference_and_says_so() -> None:
    with dispatch.explained() as choices:
        energy_score(HERE, 0.5)
    assert choices == {"energy_score": ("reference", "the tensors are on cpu")}


def test_the_environment_and_the_context_ask(monkeypatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert dispatch.choose(HERE) == ("reference", "it was asked for")
    monkeypatch.setenv(dispatch.VARIABLE, "fast")
    with pytest.raises(ValueError, match="TOKENREDUCE_KERNELS='fast'; allowed: 'auto', 'reference', 'triton'"):
        dispatch.choose(HERE)
    with dispatch.backend("reference"):
        assert dispatch.choose(HERE).backend == "reference"
        with dispatch.backend("auto"):
            assert dispatch.choose(HERE).reason != "it was asked for"
    with pytest.raises(ValueError, match="name='fast'"), dispatch.backend("fast"):
        pass


def test_what_triton_cannot_serve_is_refused_with_the_reason(monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with dispatch.backend("triton"):
        for call, reason in (
            (lambda: dispatch.choose(HERE, limit="k=99 is above 32"), "k=99 is above 32"),
            (lambda: dispatch.choose(HERE.double()), "float64"),
            (lambda: dispatch.choose(HERE[:0]), "nothing to do"),
            (lambda: dispatch.choose(HERE, torch.ones(1, device="meta")), "several devices"),
            (lambda: compact(HERE.clone().requires_grad_(), torch.zeros(1, 1, dtype=torch.long)), "gradients"),
        ):
            with pytest.raises(ValueError, match=reason):
                call()
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        if not torch.cuda.is_available():
            with pytest.raises(ValueError, match=r"tensors are on cpu, where Triton runs only in its interpreter"):
                dispatch.choose(HERE)
        monkeypatch.setattr(dispatch, "installed", lambda: False)
        with pytest.raises(ValueError, match="pip install triton"):
            dispatch.choose(HERE)


@pytest.mark.gpu
def test_a_gpu_takes_the_kernel_where_it_can() -> None:
    x = HERE.cuda()
    assert dispatch.choose(x).backend == "triton"
    assert dispatch.choose(x.double()).backend == "reference"
    assert dispatch.choose(x.requires_grad_(), graph=True) == ("reference", "gradients are wanted")
