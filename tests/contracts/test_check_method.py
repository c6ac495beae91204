"""``tr.check_method`` passes what keeps the contracts, and names the contract, the reason and the way out where one is broken."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import tokenreduce as tr
from tokenreduce import method
from tokenreduce.cli import app
from tokenreduce.eval import tiny_models
from tokenreduce.eval.method_check import ContractViolation
from tokenreduce.eval.method_check.contracts import CONTRACTS

FULL, TEXT, COUNT, SHORTER, BATCH, CACHE, LEFT = CONTRACTS


@dataclass(frozen=True, kw_only=True)
class LargestNorm(tr.Method, register=False):
    name = "largest_norm"
    title = "a method of one's own"
    stages = ("projector",)

    def plan(self, facts: tr.ModelFacts) -> tuple[tr.Step, ...]:
        return (tr.Step("projector"),)

    def reduce(self, tokens: tr.VisualTokens) -> tr.Reduction:
        return tr.Reduction.top(self.score(tokens), self.budget.count(tokens.num_tokens), positions=self.positions)

    def score(self, tokens: tr.VisualTokens) -> torch.Tensor:
        return tokens.features.float().norm(dim=-1)


@dataclass(frozen=True, kw_only=True)
class Few(LargestNorm, register=False):
    """Fewer than the budget."""

    def reduce(self, tokens):
        return tr.Reduction.top(self.score(tokens), 2)


@dataclass(frozen=True, kw_only=True)
class Many(LargestNorm, register=False):
    """More than the budget."""

    def reduce(self, tokens):
        return tr.Reduction.identity(tokens)


@dataclass(frozen=True, kw_only=True)
class Never(LargestNorm, register=False):
    """Reduces with a full budget, too."""

    def is_identity(self, n):
        return False

    def reduce(self, tokens):
        return tr.Reduction.top(self.score(tokens), tokens.num_tokens - 1)


@dataclass(frozen=True, kw_only=True)
class BatchMean(LargestNorm, register=False):
    """Ranks by what the whole batch holds."""

    def score(self, tokens):
        return (tokens.features - tokens.features.mean(dim=(0, 1))).norm(dim=-1)


@dataclass(frozen=True, kw_only=True)
class Counting(LargestNorm, register=False):
    """Another plan at every call."""

    def score(self, tokens):
        CALLS.append(1)
        return ((torch.arange(tokens.num_tokens) * 7 + len(CALLS) * 3) % 11).float().expand(len(tokens.features), -1)


@dataclass(frozen=True, kw_only=True)
class Twice(LargestNorm, register=False):
    def reduce(self, tokens):
        return tr.Reduction.select(torch.zeros(len(tokens.features), 2).long(), tokens.num_tokens)


@dataclass(frozen=True, kw_only=True)
class Hooks(LargestNorm, register=False):
    """Leaves something on the model."""

    def reduce(self, tokens):
        MODEL[-1].extra = True
        return super().reduce(tokens)


CALLS: list[int] = []
MODEL: list = []


def verdicts(check) -> dict[str, set[str]]:
    return {row["contract"]: {v for k, v in row.items() if k != "contract"} for row in check.table()}


def broken(method, **more):
    with pytest.raises(ContractViolation) as caught:
        tr.check_method(method, families=["llava"], **more)
    return caught.value


def test_a_method_that_keeps_the_contracts():
    found = tr.check_method(LargestNorm, keep=0.4)
    assert verdicts(found) == {name: {"right"} for name in CONTRACTS}
    assert str(found).splitlines()[0].split() == ["contract", "llava", "llava_next", "qwen2_5_vl"]
    assert found.reasons() == []


@pytest.mark.parametrize(
    ("method", "contract", "words"),
    [
        (Few, COUNT, ["2 of 16 tokens", "keep=0.5 means 8", "self.budget.count"]),
        (Many, COUNT, ["left 16 of 16 tokens", "at most 8", "most(n)"]),
        (Never, FULL, ["changes outputs", "is_identity"]),
        (BatchMean, BATCH, ["logits of sample", "must not depend on the others"]),
        (Counting, CACHE, ["with a cache and", "without"]),
        (Twice, COUNT, ["token 0 twice", "Reduction.merge"]),
    ],
)
def test_a_broken_contract_is_named_with_its_way_out(method, contract, words):
    error = broken(method)
    assert contract in {one.contract for one in error.check.wrong}
    for word in (f"method={method.name!r} does not keep the contracts", f"{contract} (llava)", *words):
        assert word in str(error)


def built(monkeypatch, change):
    """Tiny models after ``change(model, attention)``."""
    build = tiny_models.build

    def changed(key, attention="sdpa"):
        model = build(key, attention)
        change(model, attention)
        return model

    monkeypatch.setattr(tiny_models, "build", changed)


def test_logits_that_differ_from_the_shortened_sequence_are_found(monkeypatch):
    def other(model, attention):
        if attention == "eager":  # the one left bare
            model.lm_head.weight.data += 0.01

    built(monkeypatch, other)
    error = broken(LargestNorm)
    assert {one.contract for one in error.check.wrong} == {SHORTER}
    assert "really shorter; source must name" in str(error)


def test_what_is_left_behind_is_found(monkeypatch):
    built(monkeypatch, lambda model, attention: MODEL.append(model) if attention == "sdpa" else None)
    error = broken(Hooks)
    assert {one.contract for one in error.check.wrong} == {LEFT}
    assert "not what it was before" in str(error)


@dataclass(frozen=True, kw_only=True)
class NeedsCls(LargestNorm, register=False):
    def plan(self, facts):
        if not facts.has_cls:
            raise ValueError("there is no [CLS] token; use another method")
        return super().plan(facts)


def test_families_that_refuse_are_noted_and_all_of_them_are_a_failure():
    found = tr.check_method(NeedsCls, families=["llava", "qwen2_5_vl"])
    assert {one.verdict for one in found.results if one.family == "qwen2_5_vl"} == {"refused"}
    (reason,) = found.reasons()
    assert reason.startswith("qwen2_5_vl: there is no [CLS] token; use another method")
    with pytest.raises(ContractViolation, match=r"qwen2_5_vl: there is no \[CLS\]"):
        tr.check_method(NeedsCls, families=["qwen2_5_vl"])


def test_videos_for_what_reduces_videos():
    found = tr.check_method("holitom", families=["llava", "qwen2_5_vl"])
    assert {one.verdict for one in found.results if one.family == "llava"} == {"skipped"}
    assert {one.verdict for one in found.results if one.family == "qwen2_5_vl"} == {"right", "skipped"}


def test_unknown_families_and_parameters_are_refused():
    with pytest.raises(ValueError, match=r"families='lava' is unknown.*Did you mean 'llava'"):
        tr.check_method("uniform", families=["lava"])
    with pytest.raises(TypeError, match="no parameter 'strength'"):
        tr.check_method(LargestNorm, strength=1)


OWN = """
from dataclasses import dataclass
import tokenreduce as tr

@dataclass(frozen=True, kw_only=True)
class Mine(tr.Method):
    name = "mine_of_a_file"
    title = "mine"
    stages = ("projector",)
    extra: int = 0

    def plan(self, facts):
        return (tr.Step("projector"),)

    def reduce(self, tokens):
        k = self.budget.count(tokens.num_tokens) + self.extra
        return tr.Reduction.top(tokens.features.float().norm(dim=-1), k)
"""


def test_the_command_takes_a_class_of_a_file(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(method, "_REGISTERED", dict(method._REGISTERED))  # the file's class is forgotten afterwards
    (tmp_path / "mine.py").write_text(OWN)
    place = f"{tmp_path / 'mine.py'}:Mine"
    run = CliRunner().invoke(app, ["check-method", place, "--keep", "0.5", "--family", "llava"])
    assert run.exit_code == 0, run.output
    assert SHORTER in run.output
    run = CliRunner().invoke(app, ["check-method", place, "-p", "extra=1", "--family", "llava", "--json", "-"])
    assert run.exit_code == 1
    assert json.loads(run.stdout)["wrong"] > 0
    run = CliRunner().invoke(app, ["check-method", f"{tmp_path / 'mine.py'}:Yours"])
    assert run.exit_code == 2
    assert "Yours" in run.output
    assert "Mine" in run.output
    run = CliRunner().invoke(app, ["check-method", f"{tmp_path / 'none.py'}:Mine"])
    assert run.exit_code == 2
