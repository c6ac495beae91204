"""What a cell's key depends on: all that determines its result, and nothing else."""

from __future__ import annotations

import json

import pytest
from random_gates import gates

from tokenreduce.eval.demo import WEIGHTS
from tokenreduce.eval.harness import TASKS
from tokenreduce.eval.recipe import Recipe
from tokenreduce.eval.sweep import Cell, hashes, identity, tasks

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; pip install 'tokenreduce[eval]'")

DEMO_TASKS = (str(TASKS),)


def forget():
    """As in a new process."""
    for function in (hashes.file_hash, hashes.source_hash, tasks.task_identity, identity.model_hash):
        function.cache_clear()


@pytest.fixture(autouse=True)
def nothing_remembered():
    yield
    forget()


def demo(recipe=None, task="tr_demo_images", model="demo", **more):
    return Cell(model, task, Recipe.of("hiprune", 0.25) if recipe is None else recipe, include=DEMO_TASKS, **more)


def test_key_follows_from_the_cell_the_model_and_the_versions(tmp_path, monkeypatch):
    base = demo()
    others = [
        demo(task="tr_demo_video"),
        demo(Recipe.of("hiprune", 36)),
        demo(Recipe.of("hiprune", 0.25, {"alpha": 0.2})),
        demo(Recipe.of("hiprune", 0.25, images_as_video=True)),
        demo(limit=5),
        demo(batch_size=2),
        demo(model_args={"dtype": "float16"}),
        demo(Recipe()),
    ]
    assert len({cell.key for cell in (base, *others)}) == 9
    assert Cell.from_dict(json.loads(json.dumps(base.as_dict()))).key == base.key
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in WEIGHTS.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    same = demo(model=str(copy))
    assert same.key == base.key  # the files count, not their place
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    forget()
    assert same.key != base.key
    before = base.key
    monkeypatch.setattr(identity, "installed", lambda package: "9.9")
    assert base.key != before


def test_weights_count_by_their_content(tmp_path):
    def gated(path, seed):
        return demo(Recipe.of("dyvte", parameters={"weights": gates(seed).save(tmp_path / path)}))

    first, moved, other = gated("first.safetensors", 0), gated("moved.safetensors", 0), gated("other.safetensors", 1)
    assert first.key == moved.key != other.key
    assert first.as_dict()["recipe"]["methods"][0]["weights"]["path"] == str(tmp_path / "first.safetensors")


def test_hub_files_are_hashed_by_their_name(tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / ("ab" * 32)).write_text("weights")
    (tmp_path / "model.safetensors").symlink_to(blobs / ("ab" * 32))
    assert hashes.file_hash(tmp_path / "model.safetensors") == "ab" * 32


@pytest.mark.parametrize(
    ("changed", "counts"),
    [("kernels/rows.py", True), ("adapters/upstream/cache.py", True), ("tokenreduce/methods/hiprune.py", True),
     ("eval/harness/meter.py", True), ("tokenreduce/cli/sweep.py", False), ("eval/report/page.py", False)],
)  # fmt: skip
def test_the_sources_of_the_toolkit_count_as_far_as_they_make_results(monkeypatch, changed, counts):
    before, true_hash = hashes.source_hash(), hashes.file_hash
    seen = []

    def edited(path):
        if path.as_posix().endswith(f"/{changed}"):
            seen.append(path)
            return "edited"
        return true_hash(path)

    monkeypatch.setattr(hashes, "file_hash", edited)
    hashes.source_hash.cache_clear()
    assert (hashes.source_hash() != before) == counts
    assert bool(seen) == counts
    monkeypatch.undo()


YAML = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
UTILS = """
def visual(doc):
    return []

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
"""


@pytest.fixture
def own_tasks(tmp_path):
    """Two tasks with helper files of one name, in a group; the questions of one lie elsewhere."""
    place, elsewhere = tmp_path / "tasks", tmp_path / "data"
    elsewhere.mkdir()
    for name, data in (("tr_own_a", place / "tr_own_a/questions.json"), ("tr_own_b", elsewhere / "b.json")):
        (place / name).mkdir(parents=True)
        data.write_text(json.dumps([{"question": f"{name} {i}?", "answer": "yes"} for i in range(3)]))
        (place / name / "task.yaml").write_text(YAML.format(name=name, data=data))
        (place / name / "utils.py").write_text(UTILS)
    (place / "group.yaml").write_text("group: tr_own\ntask:\n  - tr_own_a\n  - tr_own_b\n")
    return place, elsewhere


def key_of(place, task="tr_own"):
    forget()
    cell = Cell("demo", task, include=(str(place),))
    assert "problem" not in cell.identity()["task_identity"], cell.identity()
    return cell.key


def test_below_a_group_are_the_tasks_that_the_harness_finds(own_tasks):
    place, _ = own_tasks
    tasks.check(["tr_own", "tr_own_b"], [str(place)])
    found = tasks.task_identity("tr_own", (str(place),))
    assert {name: leaf["documents"] for name, leaf in found["leaves"].items()} == {"tr_own_a": 3, "tr_own_b": 3}


CHANGES = {
    "a question beside the task": ("tasks/tr_own_a/questions.json", "tr_own_a 1?", "how many?"),
    "a question elsewhere": ("data/b.json", "tr_own_b 1?", "how many?"),
    "an answer elsewhere": ("data/b.json", "yes", "no"),
    "the first helper of one name": ("tasks/tr_own_a/utils.py", "return []", "return None"),
    "the second helper of one name": ("tasks/tr_own_b/utils.py", "return []", "return None"),
    "the number of new tokens": ("tasks/tr_own_b/task.yaml", "max_new_tokens: 4", "max_new_tokens: 5"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_key_follows_from_the_task_and_its_questions(own_tasks, tmp_path, case):
    place, _ = own_tasks
    name, old, new = CHANGES[case]
    before = key_of(place)
    assert key_of(place) == before
    file = tmp_path / name
    file.write_text(file.read_text().replace(old, new))
    assert key_of(place) != before


def test_key_does_not_follow_from_where_tasks_and_data_are_nor_when_they_were_written(own_tasks, tmp_path):
    place, elsewhere = own_tasks
    leaf = {}
    for _ in range(2):
        forget()
        found = tasks.task_identity("tr_own_b", (str(place),))
        leaf[str(place)] = found["leaves"]["tr_own_b"]
        moved = tmp_path / "moved.json"
        moved.write_text((elsewhere / "b.json").read_text())
        yaml = place / "tr_own_b/task.yaml"
        yaml.write_text(yaml.read_text().replace(str(elsewhere / "b.json"), str(moved)))
        place = place.rename(tmp_path / "tasks elsewhere") if place.name == "tasks" else place
    first, second = leaf.values()
    assert first == second


def test_a_task_that_cannot_be_loaded_has_a_key_and_says_why(own_tasks):
    place, elsewhere = own_tasks
    before = key_of(place)
    (elsewhere / "b.json").unlink()
    forget()
    cell = Cell("demo", "tr_own", include=(str(place),))
    assert "FileNotFoundError" in cell.identity()["task_identity"]["problem"]
    assert cell.key != before
