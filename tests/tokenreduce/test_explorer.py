"""The panel for notebooks: controls lead to pictures and answers, and its state can be stored in a notebook."""

from __future__ import annotations

import sys

import pytest

from tokenreduce.draw import explore
from tokenreduce.draw.explorer import Explorer
from tokenreduce.eval import demo

pytest.importorskip("ipywidgets", reason="pip install 'tokenreduce[notebooks]' brings ipywidgets")


@pytest.fixture(scope="module")
def given():
    model, processor = demo.load()
    scenes = demo.questions("test", 3, per_image=1)
    return model, processor, {f"scene {i}": q.image for i, q in enumerate(scenes)}, "how many objects are there?"


def test_controls_lead_to_pictures_and_answers(given):
    panel = Explorer(*given, ["fastv", "hiprune", "tome"], [1.0, 0.25, 9], 4, 200)
    seen = [bytes(panel.picture.value)]
    assert panel.keep.value == 0.25
    assert [name for name, _ in panel.step.options] == ["all tokens", "fastv, layer 2 on"]
    assert panel.found.texts[0] in panel.text.value

    def changed():
        seen.append(bytes(panel.picture.value))
        return seen[-1].startswith(b"\x89PNG") and seen[-1] not in seen[:-1]

    panel.step.value = 0
    assert changed()
    panel.heat.value = True
    assert "no method ranked" in panel.text.value
    panel.step.value = 1
    assert changed()
    panel.heat.value = False
    panel.method.value = "tome"
    assert changed()
    assert len(panel.step.options) == 6
    panel.image.value = "scene 1"
    assert changed()
    panel.keep.value = 9
    assert changed()
    assert len(panel.found.trace.images[0].stages[-1].source) == 9


def test_what_a_method_refuses_is_said_in_the_panel(given):
    panel = Explorer(*given, ["hiprune"], [0.5, 500], 2, 200)
    panel.keep.value = 500
    assert "exceeds the 144 visual tokens" in panel.text.value
    assert panel.found is None


def test_state_can_be_stored(given):
    from ipywidgets import embed

    made = explore(*given, methods=["hiprune"], side=100)
    data = embed.embed_data(views=[made], state=embed.dependency_state([made]))
    models = {state["model_name"] for state in data["manager_state"]["state"].values()}
    assert {"DropdownModel", "SelectionSliderModel", "CheckboxModel", "ImageModel", "HTMLModel"} <= models
    assert len(data["view_specs"]) == 1


def test_without_ipywidgets_it_says_what_to_install(given, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match=r"pip install 'tokenreduce\[notebooks\]'"):
        explore(*given)
