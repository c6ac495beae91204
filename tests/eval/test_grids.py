"""What a grid means: cells, budgets, seeds; what cannot be read."""

from __future__ import annotations

import pytest
from sweep_grids import BASIC, NEEDS, OWN_TASKS

from tokenreduce.eval.sweep import Grid


def names(grid):
    return [str(cell.recipe) for cell in grid.cells]


def test_baseline_and_random_are_always_there():
    assert names(Grid.of(BASIC)) == [
        "unreduced", "random keep=0.5", "random keep=0.25",
        "hiprune keep=0.5", "hiprune keep=0.25", "uniform keep=0.5", "uniform keep=0.25",
    ]  # fmt: skip


def test_lists_span_and_compositions_have_budgets_of_their_own():
    methods = [{"method": "fastv", "layer": [1, 2]}, "fastervlm:0.5+fastv:1/4", {"method": "hiprune", "keep": 36}]
    assert names(Grid.of({**BASIC, "methods": methods, "keep": 0.25})) == [
        "unreduced", "random keep=0.25", "random keep=36", "fastv(layer=1) keep=0.25", "fastv keep=0.25",
        "fastervlm + fastv keep=0.5 + 0.25", "hiprune keep=36",
    ]  # fmt: skip


def test_default_methods_are_those_that_reduce_pictures():
    found = {
        m.name for cell in Grid.of({"model": "demo", "tasks": "tr_demo_images"}).cells for m in cell.recipe.methods
    }
    assert {"hiprune", "fastv", "tome", "random"} <= found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"metods": []}, "no key 'metods'; allowed keys: model"),
        ({"model": None}, "says no model"),
        ({"tasks": []}, "says no tasks"),
        ({"keep": [1.5]}, r"outside \(0, 1\]"),
        ({"keep": ["half"]}, "not a budget"),
        ({"methods": ["hiprun"]}, "Did you mean 'hiprune'"),
        ({"methods": ["auto"]}, "'auto' stands for what a sweep finds"),
        ({"methods": [{"name": "hiprune"}]}, "a mapping with the key method"),
        ({"methods": [{"method": {"hiprune": "demo"}}]}, "a name, or .*under the name or the type of a model"),
        ({"methods": [{"method": {"hiprune": {"qwen": {}}}}]}, r"'qwen', which is no model .*demo \(llava, demo\)"),
        ({"methods": [{"method": {"hiprune": {"demo": {"alhpa": 1}}}}]}, "no parameter 'alhpa'"),
        ({"methods": [{"method": "hiprune", "alhpa": 1}]}, "no parameter 'alhpa'"),
        ({"methods": [{"method": "fastervlm:0.5+fastv:0.5", "layer": 1}]}, "fastervlm.layer"),
        ({"limit": 0}, "limit=0"),
        ({"seeds": ["one"]}, "seeds='one'; allowed: ints"),
        ({"seeds": [-1]}, "seeds=-1"),
        ({"model_args": "dtype"}, "a mapping"),
    ],
)
def test_bad_grids_teach(change, told):
    with pytest.raises((ValueError, TypeError), match=told):
        Grid.of({**BASIC, **change})


def test_models_have_parameters_of_their_own(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    (tmp_path / "grid.yaml").write_text(f"""
        model: [demo, {tmp_path}]
        tasks: [tr_demo_images]
        keep: [0.5, 0.25]
        methods:
          - method: {{fastervlm: {{qwen2_5_vl: {{score: global_mean, keep: 0.25}}, demo: {{heads: [mean, max]}}}}}}
            keep: 0.5
    """)
    demo, other = (
        names(Grid(tuple(c for c in Grid.read(tmp_path / "grid.yaml").cells if c.model == model)))
        for model in ("demo", str(tmp_path))
    )
    assert demo[-2:] == ["fastervlm keep=0.5", "fastervlm(heads=max) keep=0.5"]
    assert other[-1:] == ["fastervlm(score=global_mean) keep=0.25"]


def test_the_name_of_a_model_goes_over_its_type(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    given = {tmp_path.name: {"alpha": 0.3}, "llava": {"alpha": 0.2, "object_layer": 4}}
    cells = Grid.of(
        {**BASIC, "model": ["demo", str(tmp_path)], "keep": 0.5, "methods": [{"method": {"hiprune": given}}]}
    )
    assert [name for name in names(cells) if "hiprune" in name] == [
        "hiprune(alpha=0.2, object_layer=4) keep=0.5", "hiprune(alpha=0.3, object_layer=4) keep=0.5",
    ]  # fmt: skip


def test_seeds_go_to_what_has_chance():
    pytest.importorskip("lmms_eval", reason=NEEDS)
    own = {"method": "random", "keep": 0.25, "seed": 7}
    grid = Grid.of({**BASIC, "methods": ["hiprune", own], "keep": [0.5], "seeds": [0, 1]})
    assert names(grid) == [
        "unreduced", "random keep=0.5", "random(seed=1) keep=0.5", "random keep=0.25", "random(seed=1) keep=0.25",
        "hiprune keep=0.5", "random(seed=7) keep=0.25",
    ]  # fmt: skip
    assert {cell.seed for cell in grid.cells} == {None}
    tasks = {"tasks": ["scored_drawn"], "include_path": [str(OWN_TASKS)]}
    drawn = Grid.of({**BASIC, **tasks, "methods": ["hiprune"], "keep": [0.5], "seeds": [0, 1]})
    assert [str(cell) for cell in drawn.cells] == [
        "demo scored_drawn unreduced seed=0", "demo scored_drawn unreduced seed=1",
        "demo scored_drawn random keep=0.5 seed=0", "demo scored_drawn random(seed=1) keep=0.5 seed=1",
        "demo scored_drawn hiprune keep=0.5 seed=0", "demo scored_drawn hiprune keep=0.5 seed=1",
    ]  # fmt: skip
    assert len({cell.key for cell in drawn.cells}) == 6


@pytest.mark.parametrize(("text", "told"), [("model: [", "is no YAML.*line 1"), ("- demo", "holds no mapping")])
def test_unreadable_grids_teach(tmp_path, text, told):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(ValueError, match=told):
        Grid.read(tmp_path / "grid.yaml")
    with pytest.raises(ValueError, match="cannot be read"):
        Grid.read(tmp_path / "none.yaml")
