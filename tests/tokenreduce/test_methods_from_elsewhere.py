"""Methods of one's own by every way in: a file, a module, an installed package; and a file to start from."""

from __future__ import annotations

import runpy
import subprocess
import sys
from string import Template

import pytest
import torch
from models import llava
from typer.testing import CliRunner

import tokenreduce as tr
import tokenreduce.method
from tokenreduce import own_methods
from tokenreduce.attachment import attachment_of
from tokenreduce.cli import app
from tokenreduce.eval.recipe import Recipe
from tokenreduce.registry import make, named

SOURCE = Template("""
from dataclasses import dataclass
from tokenreduce.method import Method
from tokenreduce.reduction import Reduction

@dataclass(frozen=True, kw_only=True)
class TextSim(Method):
    name = "$name"
    title = "$title"
    stages = ("projector",)
    power: float = 1.0

    def reduce(self, tokens):
        return Reduction.top(tokens.features[..., 0] ** self.power, self.budget.count(tokens.num_tokens))

@dataclass(frozen=True, kw_only=True)
class Hidden(TextSim, register=False):
    pass
""")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """What a test defines is known in that test alone."""
    monkeypatch.setattr(tokenreduce.method, "_REGISTERED", dict(tokenreduce.method._REGISTERED))
    monkeypatch.setattr(own_methods, "_FILES", {})


@pytest.fixture
def mine(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(SOURCE.substitute(name="text_sim", title="by text"))
    return file


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def words(result):
    return " ".join(result.output.split())


def test_a_model_is_wrapped_with_a_method_of_a_file(mine):
    model = llava()
    with tr.wrapped(model, f"{mine}:TextSim", keep=2):
        assert attachment_of(model).hooks.pipeline.methods[0].name == "text_sim"
    assert "text_sim" in [row["name"] for row in tr.methods()]


def test_a_file_that_changed_is_read_again(mine):
    assert make(f"{mine}:TextSim").title == "by text"
    mine.write_text(SOURCE.substitute(name="text_sim", title="by more text"))
    assert make(f"{mine}:TextSim").title == "by more text"


def test_a_place_may_be_followed_by_a_budget(mine):
    assert named(f"{mine}:TextSim:1/4") == ("text_sim", "1/4")
    assert named("fastv:auto:16-128") == ("fastv", "auto:16-128")
    assert named("HiPrune:0.25") == ("hiprune", "0.25")
    recipe = Recipe.of(f"{mine}:TextSim:0.25+fastv:2", parameters={"text_sim.power": 2.0})
    assert recipe.name == "text_sim(power=2.0) + fastv"
    assert recipe.keep == "0.25 + 2"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{folder}/gone.py:TextSim", "there is no file"),
        ("{folder}/mine.py:TextSin", "it holds: TextSim, Hidden"),
        ("{folder}/mine.py:Hidden", "register=False"),
        ("{folder}/broken.py:TextSim", "ZeroDivisionError: division by zero, line 2"),
        ("no_such_module_at_all:TextSim", "cannot be imported (ModuleNotFoundError"),
        ("{folder}/mine.py", "'./mine.py:Mine'"),
    ],
)
def test_what_is_wrong_with_a_place_is_told(place, message, mine):
    (mine.parent / "broken.py").write_text("\n1 / 0\n")
    result = call("run", "--model", "demo", "--method", place.format(folder=mine.parent))
    assert result.exit_code == 2
    assert message in words(result)


def test_two_files_may_be_called_alike_but_their_methods_may_not(mine, tmp_path):
    make(f"{mine}:TextSim")
    other = tmp_path / "elsewhere/mine.py"
    other.parent.mkdir()
    other.write_text(SOURCE.substitute(name="text_sim", title="another"))
    with pytest.raises(ValueError, match=r"text_sim.*is taken by"):
        make(f"{other}:TextSim")
    other.write_text(SOURCE.substitute(name="other_sim", title="another"))
    assert make(f"{other}:TextSim").title == "another"
    assert make(f"{mine}:TextSim").title == "by text"


def test_another_process_finds_it_by_what_a_recipe_writes(mine):
    recipe = Recipe.of(f"{mine}:TextSim", 0.25)
    code = f"from tokenreduce.eval.recipe import Recipe; print(Recipe.from_dict({recipe.as_dict()!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "text_sim keep=0.25"
    assert "places" not in Recipe.of("fastv", 0.25).as_dict()


def test_a_sweep_knows_its_methods_by_their_content(mine, tmp_path):
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; pip install 'tokenreduce[eval]'")
    from tokenreduce.eval.sweep import Grid

    grid = Grid.of(
        {"model": "demo", "tasks": ["tr_demo_images"], "import": str(mine), "methods": ["text_sim"], "keep": [0.5]}
    )
    own = grid.cells[-1].identity()
    assert own["method_files"]["text_sim"]
    assert "places" not in own["recipe"]
    assert "places" in grid.cells[-1].as_dict()["recipe"]
    shown = call("sweep", "--model", "demo", "--task", "tr_demo_images", "--method", f"{mine}:TextSim", "--keep", "0.5",
                 "--dry-run", "--out", tmp_path / "out")  # fmt: skip
    assert "text_sim" in shown.output


def test_lmms_eval_is_told_by_an_argument_of_the_model(mine):
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; pip install 'tokenreduce[eval]'")
    from tokenreduce.eval.harness.settings import Settings

    given = {"tr_import": str(mine), "tr_method": "text_sim", "tr_keep": 0.25, "tr_power": 2.0, "pretrained": "demo"}
    settings, rest = Settings.taken_from(given)
    assert str(settings.recipe) == "text_sim(power=2.0) keep=0.25"
    assert rest == {"pretrained": "demo"}


def test_commands_take_it_by_place_and_by_import(mine):
    found = call("run", "--model", "demo", "--method", f"{mine}:TextSim:0.25", "--no-compare", "--max-new-tokens", 2)
    assert found.exit_code == 0, found.output
    assert "text_sim" in found.output
    imported = call(
        "run", "--model", "demo", "--import", mine, "--method", "text_sim", "--no-compare", "--max-new-tokens", 2
    )
    assert imported.exit_code == 0, imported.output


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package that names methods in its metadata, as pip would install it."""

    def install(entries):
        meta = tmp_path / "site/brings_methods-1.0.dist-info"
        meta.mkdir(parents=True)
        (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: brings-methods\nVersion: 1.0\n")
        (meta / "entry_points.txt").write_text(f"[{own_methods.GROUP}]\n{entries}\n")
        (meta.parent / "brings_methods.py").write_text(SOURCE.substitute(name="brought", title="brought"))
        monkeypatch.syspath_prepend(meta.parent)
        own_methods.load_installed.cache_clear()

    yield install
    own_methods.load_installed.cache_clear()
    sys.modules.pop("brings_methods", None)


def test_an_installed_package_brings_methods(installed):
    installed("brought = brings_methods:TextSim")
    assert make("brought", keep=3).title == "brought"
    assert "brought" in [row["name"] for row in tr.methods()]


def test_a_package_that_cannot_be_loaded_is_told_and_left_out(installed):
    installed("lost = brings_methods:Lost")
    with pytest.warns(UserWarning, match=r"the method lost of brings-methods is left out.*Lost"):
        assert "fastv" in [row["name"] for row in tr.methods()]


def test_a_new_method_runs_as_it_is_written(tmp_path):
    done = call("new-method", "word_like", "--out", tmp_path / "new")
    assert done.exit_code == 0, done.output
    assert "check-method" in done.output
    file = tmp_path / "new/word_like.py"
    tr.check_method(f"{file}:WordLike", families=["llava"], keep=0.5)
    tests = runpy.run_path(str(file.with_name("test_word_like.py")))
    tests["test_the_token_unlike_the_others_stays"]()
    tests["test_a_parameter_out_of_range_is_told"]()
    assert "$" not in file.with_name("word_like.md").read_text() + file.read_text()
    again = call("new-method", "word_like", "--out", tmp_path / "new")
    assert again.exit_code == 2
    assert "is taken" in words(again)


@pytest.mark.parametrize(
    ("name", "message"), [("Text", "small letters"), ("fastv", "is taken"), ("class", "small letters")]
)
def test_a_name_that_cannot_be_is_refused(name, message, tmp_path):
    result = call("new-method", name, "--out", tmp_path)
    assert result.exit_code == 2
    assert message in words(result)
    assert not list(tmp_path.iterdir())


def test_a_file_is_never_replaced(tmp_path):
    (tmp_path / "word_like.md").write_text("mine")
    result = call("new-method", "word_like", "--out", tmp_path)
    assert result.exit_code == 2
    assert "is not replaced" in words(result)
    assert not (tmp_path / "word_like.py").exists()


def test_it_acts_on_tokens_as_written(mine):
    plan = make(f"{mine}:TextSim", keep=1).reduce(tr.VisualTokens(torch.arange(4.0).view(1, 4, 1), tr.Layout(2, 2)))
    assert plan.source.tolist() == [[3]]
