"""Methods explained: every parameter in words; what fits a model, and what is said where something does not."""

from __future__ import annotations

import io

import pytest
import timm
import torch
from models import llava
from rich.console import Console
from typer.testing import CliRunner

import tokenreduce as tr
from tokenreduce.cli import app
from tokenreduce.cli.app import print_table
from tokenreduce.explanation import meaning
from tokenreduce.fitting import places
from tokenreduce.method import Method, Step
from tokenreduce.registry import catalogue, registry


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def words(result):
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def tower():
    return timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=3).eval()


@pytest.mark.parametrize("name", catalogue())
def test_every_parameter_of_every_method_is_explained(name):
    found = tr.explain(name)
    assert found.idea
    assert found.acts
    assert found.source or not catalogue()[name].paper
    for row in found.parameters:
        assert len(row["meaning"].split()) > 1, row["parameter"]
        assert row["allowed"], row["parameter"]


def test_what_is_allowed_is_what_is_checked():
    rows = {row["parameter"]: row for row in tr.explain("fastv").parameters}
    assert rows["layer"]["allowed"].startswith("an int >= 1")
    assert "The paper uses 2." in rows["layer"]["allowed"]
    assert rows["layer"]["default"] == "2"
    assert rows["query"]["allowed"] == "'last', 'all'"
    assert "auto:16-128" in {row["parameter"]: row for row in tr.explain("prumerge").parameters}["keep"]["allowed"]
    assert "auto" not in rows["keep"]["allowed"]


def test_a_parameter_that_is_explained_beside_another_is_found():
    assert meaning(catalogue()["mustdrop"], "individual_threshold").startswith("``individual_threshold``: theta_i")
    assert meaning(catalogue()["storm"], "offset")


def test_the_command_explains_one_method():
    found = call("methods", "fastv")
    assert found.exit_code == 0, found.output
    assert "number of decoder layers that still see every token" in words(found)
    assert "ECCV 2024" in words(found)
    assert "Did you mean 'fastv'" in words(call("methods", "fast"))


def test_what_fits_a_model_and_where_it_acts():
    model = llava()
    rows = {row["name"]: row for row in tr.methods(model)}
    assert set(rows) == set(registry())
    assert rows["fastv"]["acts"] == "from decoder layer 2 on"
    assert rows["hiprune"]["acts"] == "behind the projector"
    assert rows["cdpruner"]["fits"] == "with a substitute"
    assert not tr.is_wrapped(model)
    with tr.wrapped(model, "random"), pytest.raises(ValueError, match=r"call tr.unwrap"):
        tr.methods(model)


def test_what_fits_a_tower_by_itself(tower):
    rows = {row["name"]: row for row in tr.methods(tower)}
    assert {name for name, row in rows.items() if row["fits"] == "yes"} >= {"tome", "pitome", "random", "uniform"}
    assert rows["fastv"]["fits"] == "no"
    assert "stage 'llm'" in rows["fastv"]["remark"]
    assert "Methods that fit" not in rows["fastv"]["remark"]


@pytest.mark.parametrize("place", ["llava", "demo"])
def test_the_command_lists_what_fits_without_weights(place):
    found = call("methods", "fastv", "--for", place)
    assert found.exit_code == 0, found.output
    assert "from decoder layer 2 on" in words(found)


def test_a_method_that_does_not_fit_is_answered_with_those_that_do(tower):
    with pytest.raises(ValueError, match=r"Methods that fit this model: .*tome.*random"):
        tr.wrap(tower, "fastv")
    with pytest.raises(ValueError, match="layer=99") as caught:
        tr.wrap(llava(), "fastv", layer=99)
    assert "Methods that fit" not in str(caught.value)


@pytest.mark.parametrize("name", ["random", "uniform", "pool"])
def test_a_tower_by_itself_has_controls_and_a_report_in_its_own_words(name, tower):
    with tr.wrapped(tower, name, keep=0.25), torch.no_grad():
        tower(torch.rand(2, 3, 64, 64))
        told = str(tr.report(tower))
    assert "patches kept          8 = 25.0% of 32 in 2 image(s)" in told
    assert "averaged over blocks" in told
    assert "KV cache" not in told
    assert "prefill" not in told


def test_places_are_said_in_the_order_of_the_model():
    steps = [Step("encoder", layer=i) for i in (0, 1, 2, 5)] + [
        Step("projector"),
        Step("llm", layer=3),
        Step("llm", layer=9),
    ]
    said = places([(Method(), step) for step in steps])
    assert said == "in the tower, blocks 0-2, 5, then behind the projector, then from decoder layer 3, 9 on"


@pytest.mark.parametrize("width", [36, 60, 100])
def test_no_word_of_a_table_is_cut_in_a_narrow_terminal(width):
    rows = [
        {
            "name": "promptdistill",
            "looks_at": "what the last token looks at",
            "parameters": "stage_keep=None, truncate=1",
        }
    ]
    file = io.StringIO()
    print_table(rows, "Methods", Console(file=file, force_terminal=True, color_system=None, width=width))
    told = file.getvalue()
    assert max(map(len, told.splitlines())) <= width
    for word in " ".join(rows[0].values()).split():
        assert word in told
