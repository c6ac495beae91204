"""The doctor finds what is wrong, says what is refused, and names the versions."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from scripts import script
from typer.testing import CliRunner

import tokenreduce as tr
from tokenreduce import tested
from tokenreduce.cli import app
from tokenreduce.eval import doctor, tiny_models
from tokenreduce.eval.doctor import beside, check, shortened, stages
from tokenreduce.eval.doctor.faults import faults

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.every_family
@pytest.mark.parametrize("key", [*tiny_models.FAMILIES, *tiny_models.BESIDE])
def test_no_family_is_wrong(key):
    found = check.checks(key)
    assert [one.stage for one in found] == list(stages.STAGES)
    assert [one for one in found if one.verdict == "wrong"] == []
    right = {one.stage for one in found if one.verdict == "right"}
    assert right >= {"projector", "llm"} - {*tiny_models.KNOWN[key].refuses}
    assert all(one.detail for one in found if one.verdict == "refused")


@pytest.mark.every_family
@pytest.mark.parametrize("key", tiny_models.FAMILIES)
def test_what_is_shortened_by_nothing_is_the_bare_model(key):
    family = check.Family(key)
    with torch.no_grad():
        bare = family.model(**family.inputs).logits
    given = shortened.caught(family.bare, family.inputs, generate=False)
    for sample, real in enumerate(family.inputs["attention_mask"].bool()):
        columns = real.nonzero()[:, 0]
        got = shortened.logits(family.bare, family.inputs, given, sample, shortened.Columns(columns))
        torch.testing.assert_close(got, bare[sample, columns], atol=check.TOLERANCE, rtol=0)
        if sample == 0:
            fewer = shortened.logits(family.bare, family.inputs, given, 0, shortened.Columns(columns[1:]))
            assert (fewer - got[1:]).abs().max() > 0.05


@pytest.mark.parametrize("key", tiny_models.BESIDE)
def test_a_row_of_a_picture_more_or_less_is_found_wrong(key, monkeypatch):
    left, fewer = beside.WAYS[key]
    monkeypatch.setitem(beside.WAYS, key, (lambda *given: left(*given)[:-1], fewer))
    (found,) = [one for one in check.checks(key) if one.stage == "projector"]
    assert (found.verdict, found.detail.partition(" of")[0]) == ("wrong", "logits")


def test_logits_that_differ_are_found_wrong_at_every_stage():
    family = check.Family("llava")
    family.bare.lm_head.weight.data += 0.01
    found = [family.checked(stage) for stage in stages.STAGES]
    assert {one.verdict for one in found} == {"wrong"}
    assert all("logits of sample 0 differ by" in one.detail for one in found)
    assert not tr.is_wrapped(family.model)


def test_tokens_that_differ_are_found_wrong():
    """A fault that shows only while writing: the cached steps are handed another token."""
    family = check.Family("llava")

    def other_token(module, args, kwargs):
        if kwargs["inputs_embeds"].shape[1] == 1:
            kwargs["inputs_embeds"] = kwargs["inputs_embeds"].flip(-1)
        return args, kwargs

    family.model.get_decoder().register_forward_pre_hook(other_token, with_kwargs=True)
    found = family.checked("cache")
    assert found.verdict == "wrong"
    assert "of the shortened sequence" in found.detail
    assert found.detail.startswith("token 2")


def renamed(model):
    """``model`` as after the next rename: no argument of its decoder has a name under which a cache is known."""
    base = type(model.get_decoder())

    class Renamed(base):
        def forward(self, input_ids=None, memory=None, **more):
            return super().forward(input_ids, **more)

    model.get_decoder().__class__ = Renamed
    return model


def test_the_next_rename_is_refused(monkeypatch):
    build = tiny_models.build
    monkeypatch.setattr(tiny_models, "build", lambda *args: renamed(build(*args)))
    found = check.checks("llava")
    assert {one.verdict for one in found} == {"refused"}
    assert all("UpstreamChanged: transformers" in one.detail for one in found)


def test_a_family_that_does_not_run_bare_is_wrong(monkeypatch):
    def gone(key, *args):
        raise ImportError("cannot import name 'LlavaConfig'")

    monkeypatch.setattr(tiny_models, "build", gone)
    assert {(one.verdict, one.detail) for one in check.checks("llava")} == {
        ("wrong", "bare model: ImportError: cannot import name 'LlavaConfig'")
    }


def test_reasons_are_said_once_and_the_wrong_ones_first():
    found = doctor.Diagnosis(
        tr.versions(),
        [
            check.Check("a", "encoder", "refused", "which a a model does not offer"),
            check.Check("b", "encoder", "refused", "which a b model does not offer"),
            check.Check("a", "llm", "wrong", "logits differ"),
        ],
    )
    assert found.reasons() == ["a llm: logits differ", "a encoder, b encoder: which such a model does not offer"]
    assert [one.family for one in found.wrong] == ["a"]
    assert "newest_tested" in str(found)


def test_command(monkeypatch, tmp_path):
    run = CliRunner().invoke(app, ["doctor", "--family", "llava", "--json", "-"])
    assert run.exit_code == 0, run.output
    made = json.loads(run.stdout)
    assert made["kind"] == "tokenreduce doctor"
    assert "Wrapped against really shortened" in run.stderr
    assert [row["library"] for row in made["versions"]] == list(tested.tested())
    assert [(one["family"], one["verdict"]) for one in made["checks"]] == [("llava", "right")] * len(stages.STAGES)
    wrong = [check.Check("llava", "llm", "wrong", "logits differ")]
    monkeypatch.setattr(check, "checks", lambda key: wrong)
    file = tmp_path / "found.json"
    run = CliRunner().invoke(app, ["doctor", "--family", "llava", "--json", str(file)])
    assert run.exit_code == 1
    assert "logits differ" in run.stdout
    assert json.loads(file.read_text())["wrong"] == 1
    file.write_text("[]")
    run = CliRunner().invoke(app, ["doctor", "--family", "llava", "--json", str(file)])
    assert run.exit_code == 2
    assert "'tokenreduce doctor' did not write it" in " ".join(run.output.split())
    assert file.read_text() == "[]"
    run = CliRunner().invoke(app, ["doctor", "--family", "lava"])
    assert run.exit_code == 2


def test_an_unknown_family_is_an_error_that_helps():
    with pytest.raises(ValueError, match=r"family='llavanext' is unknown; known: llava.*Did you mean 'llava_next'"):
        tr.doctor("llavanext")


def test_wrap_warns_once_of_a_library_newer_than_tested(monkeypatch):
    model = tiny_models.build("llava")
    newest = {name: own["newest"] for name, own in tested.tested().items()}
    monkeypatch.setattr(tested, "installed", newest.get)
    tested.warn_of_untested.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tr.unwrap(tr.wrap(model, "uniform"))
    monkeypatch.setattr(tested, "installed", {**newest, "transformers": "99.1.0+local"}.get)
    tested.warn_of_untested.cache_clear()
    with pytest.warns(UserWarning, match=r"transformers 99.1.0\+local .*`tokenreduce doctor`") as caught:
        tr.wrap(model, "uniform")
    assert caught[0].filename == __file__
    tr.unwrap(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tr.unwrap(tr.wrap(model, "uniform"))
    tested.warn_of_untested.cache_clear()


def test_tested_versions_are_those_of_the_committed_solutions():
    made = script("requirements/tested.py").made()
    assert (ROOT / "tokenreduce/tested.json").read_text() == made, "run python requirements/tested.py"


FAULTS = {
    "llama4": "raises AttributeError in its forward pass: it reads `image_outputs`",
    "hunyuan_vl": "numbers the pictures through the batch",
    "gemma4_unified": "gives other logits with a static cache",
    "ernie4_5_vl_moe": "writes nothing without a cache: IndexError",
}


@pytest.mark.every_family
@pytest.mark.skipif(tiny_models.common.TRANSFORMERS != (5, 24), reason="faults of transformers 5.24")
@pytest.mark.parametrize("key", FAULTS)
def test_faults_of_bare_models_are_named(key):
    assert any(FAULTS[key] in fault for fault in faults(key))
