"""Published tables: data that lmms-eval and the methods know, repeated on the demo model, and wrong ones refused."""

from __future__ import annotations

import pytest
import yaml
from typer.testing import CliRunner

from tokenreduce.cli import app
from tokenreduce.eval import reproduce
from tokenreduce.eval.harness import TASKS
from tokenreduce.eval.sweep.tasks import _folder, manager
from tokenreduce.registry import make

OWN = {
    "source": "made here",
    "model": "demo",
    "method": "hiprune",
    "columns": {"questions": {"task": "tr_demo_images", "metric": "exact_match"}},
    "figures": {"all": [80.0], 8: [40.0]},
}


@pytest.mark.parametrize("name", reproduce.tables())
def test_what_a_table_names_is_there(name):
    table = reproduce.Published.read(name)
    for keep in table.budgets:
        make(table.method, keep=keep, **table.parameters)
    index = manager([column.task for column in table.columns], (str(TASKS),))
    for column in table.columns:
        assert column.task in index.all_tasks
        files = _folder(index, column.task).glob("*.yaml")
        assert any(f"metric: {column.metric}\n" in f"{file.read_text()}\n" for file in files), column
        assert column.scale in (1, 100)
    whole = table.figures[None]
    for row in table.figures.values():
        assert all(x is None or y is None or x <= 1.05 * y for x, y in zip(row, whole))  # a slip of a column shows


def test_a_table_is_repeated_on_the_demo_model(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(OWN))
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["reproduce", str(file), "--limit", "2", "--out", str(out)], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    assert "3 done" in done.output
    page = (out / "page.md").read_text()
    assert "made here" in page
    assert "Another model" not in page
    lines = [line.split(" | ") for line in page.splitlines() if line.startswith(("| all", "| 8"))]
    assert [line[1:3] for line in lines] == [["80.0", "100.0%"], ["40.0", "50.0%"]]
    ours = [float(line[3]) for line in lines]
    assert ours[0] in (0, 50, 100)
    assert [line[6] for line in lines] == [f"{ours[0] - 80:+.1f}", f"{ours[1] - 40:+.1f}"]


def test_columns_by_heading_or_task():
    table = reproduce.Published.read("divprune")
    fewer = table.only(["POPE", "gqa"])
    assert [column.label for column in fewer.columns] == ["GQA", "POPE"]
    assert fewer.figures[64] == (57.5, 85.5)
    with pytest.raises(ValueError, match="'nlvr' is no column of divprune; allowed: gqa"):
        table.only(["nlvr"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"figures": {8: [1.0, 2.0]}}, "a list of 1 numbers"),
        ({"figures": {1.5: [1.0]}}, "a fraction in"),
        ({"figures": {True: [1.0]}}, "a fraction in"),
        ({"columns": {"a": {"task": "b"}}}, "task, metric, scale and note"),
        ({"source": ""}, "'source' is missing"),
        ({"sorce": "x"}, "'sorce' is missing, empty or unknown"),
    ],
)
def test_wrong_tables_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        reproduce.Published.of("own", OWN | change)


def test_an_unknown_table_names_those_there_are():
    with pytest.raises(ValueError, match="no published table 'nothing'; allowed: cdpruner"):
        reproduce.Published.read("nothing")
