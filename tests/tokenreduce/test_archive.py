"""A trace survives being written and read, and a file is never lost, half written or trusted with code."""

from __future__ import annotations

import dataclasses

import models
import numpy as np
import pytest
import torch

import tokenreduce as tr


@pytest.fixture(scope="module")
def prompts():
    model = models.llava(grid=6)
    return model, models.prompt(model, [2, 1])


def traced(prompts, *methods, **more):
    model, inputs = prompts
    with tr.wrapped(model, *methods, **more), torch.no_grad():
        model(**inputs)
        return tr.trace(model)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a.nan_to_num(-7.0), b.nan_to_num(-7.0)) and a.dtype == b.dtype
    return a == b


@pytest.mark.parametrize(
    "methods",
    [("hiprune",), ("fastv",), ("tome",), ("pool",), (tr.ToMe(keep=0.7), tr.FasterVLM(keep=9), tr.FastV(layer=2))],
)
def test_a_trace_comes_back_as_it_was(prompts, tmp_path, methods):
    trace = traced(prompts, *methods, **({"keep": 0.5} if len(methods) == 1 else {}))
    trace.save(tmp_path / "trace.npz")
    again = tr.load_trace(tmp_path / "trace.npz")
    assert repr(again) == repr(trace)
    assert again.images_per_sample() == trace.images_per_sample()
    assert all(map(same, again.kept, trace.kept))
    assert again.kept_at.keys() == trace.kept_at.keys()
    assert len(again.images) == len(trace.images) == 3
    for new, old in zip(again.images, trace.images):
        assert (new.sample, new.layout) == (old.sample, old.layout)
        assert same(new.columns, old.columns)
        assert len(new.stages) == len(old.stages) > 0
        for a, b in zip(new.stages, old.stages):
            assert all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))


def test_scores_are_noted_on_original_tokens(prompts):
    trace = traced(prompts, tr.FasterVLM(keep=12), tr.FastV(layer=2, keep=5))
    for image in trace.images:
        first, second = image.stages
        kept = torch.isin(torch.arange(image.tokens_in), first.source)
        assert first.score is not None
        assert first.score[kept].min() >= first.score[~kept].max()
        assert second.score is not None
        assert torch.equal(second.score.isnan(), ~kept)
        left = torch.isin(torch.arange(image.tokens_in), second.source)
        assert second.score[left].min() >= second.score[kept & ~left].max()


def test_files_are_not_replaced_unless_asked(prompts, tmp_path):
    trace, path = traced(prompts, "uniform", keep=4), tmp_path / "trace.npz"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        trace.save(path)
    assert path.read_text() == "precious"
    trace.save(path, overwrite=True)
    assert tr.load_trace(path).images[0].tokens_in == 36
    assert [p.name for p in tmp_path.iterdir()] == ["trace.npz"]


def test_a_failed_write_leaves_the_old_file(prompts, tmp_path, monkeypatch):
    trace, path = traced(prompts, "uniform", keep=4), tmp_path / "trace.npz"
    path.write_text("precious")
    monkeypatch.setattr(np, "savez_compressed", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        trace.save(path, overwrite=True)
    assert path.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["trace.npz"]


def test_what_is_no_trace_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"trace\.save"):
        tr.load_trace(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "code.npz", a=np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npz").write_text("nothing")
    for name in ("other", "code", "text"):
        with pytest.raises(ValueError, match="holds no trace"):
            tr.load_trace(tmp_path / f"{name}.npz")
    with pytest.raises(ValueError, match=r"ending in \.npz"):
        tr.Trace.of([], torch.zeros(1, 3, dtype=torch.bool), 0, ()).save(tmp_path / "trace.pt")
