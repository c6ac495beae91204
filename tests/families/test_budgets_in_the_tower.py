"""A budget inside the tower is an image's, however many views the tower sees of it, as it is at the projector."""

from __future__ import annotations

import pytest
import reduced
import torch

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo

TILED = ["llava_next", "llava_onevision", "video_llava"]
METHODS = {
    "tome": tr.ToMe,
    "pitome": tr.PiToMe,
    "evit": tr.EViT,
    "pitome-keys": lambda **k: tr.PiToMe(preset="keys", **k),
}


def kept(model, inputs, method) -> tuple[list[int], list[int]]:
    _, trace = reduced.forward(model, inputs, method)
    ends = [image.reached(0) for image in trace.images]
    return [i.tokens_in for i in trace.images], [
        i.tokens_in if end is None else len(end.source) for i, end in zip(trace.images, ends)
    ]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["single", "mixed"])
@pytest.mark.parametrize("key", TILED)
def test_a_count_is_of_the_image_and_a_share_is_exact(key, kind, method):
    model = reduced.model(key)
    inputs = zoo.inputs(key, kind, model)
    for keep in (0.5, 0.3, 12):
        came, left = kept(model, inputs, METHODS[method](keep=keep))
        assert left == [min(n, keep) if isinstance(keep, int) else round(keep * n) for n in came]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [0.5, 12])
@pytest.mark.parametrize("key", TILED[:2])
def test_images_of_one_batch_do_not_change_each_other(key, keep, method):
    model = reduced.model(key)
    case = zoo.case(key, "mixed", model)
    _, trace = reduced.forward(model, case.inputs, METHODS[method](keep=keep))
    for b in range(len(case.inputs["input_ids"])):
        _, one = reduced.forward(model, zoo.alone(key, case, b), METHODS[method](keep=keep))
        mine = [image for image in trace.images if image.sample == b]
        assert len(mine) == len(one.images)
        for image, own in zip(mine, one.images):
            assert torch.equal(image.kept(), own.kept())
            assert torch.equal(image.standing_for(), own.standing_for())


@pytest.mark.parametrize("method", [tr.EViT, tr.GTP])
@pytest.mark.parametrize("key", ["llava_next", "qwen2_5_vl", "internvl", "gemma3"])
def test_a_batch_equals_its_samples_where_patches_leave(key, method):
    """In towers with tiles, windows and units of patches."""
    model = reduced.model(key)
    case = zoo.case(key, "mixed", model)
    whole, trace = reduced.forward(model, case.inputs, method(keep=0.4))
    for b, mask in enumerate(case.inputs["attention_mask"]):
        inputs = zoo.alone(key, case, b)
        one, own = reduced.forward(model, inputs, method(keep=0.4))
        mine = [image for image in trace.images if image.sample == b]
        assert [image.kept().tolist() for image in mine] == [image.kept().tolist() for image in own.images]
        assert [len(image.kept()) for image in mine] == [round(0.4 * image.tokens_in) for image in mine]
        last, end = (int(m.nonzero().max()) for m in (mask, inputs["attention_mask"][0]))
        torch.testing.assert_close(whole.logits[b, last], one.logits[0, end], atol=1e-4, rtol=1e-4)


def test_fewer_tokens_than_views_are_refused_with_the_way_out():
    model = reduced.model("llava_next")
    inputs = zoo.inputs("llava_next", "single", model)
    with pytest.raises(ValueError, match=r"keep=2 tokens of an image that the tower sees in .* at='projector'"):
        reduced.forward(model, inputs, tr.ToMe(keep=2))


@pytest.mark.parametrize("kind", ["video", "image_and_video", "videos"])
@pytest.mark.parametrize("key", ["llava_next_video", "llava_onevision"])
def test_a_pooled_video_is_refused_also_beside_tiles(key, kind):
    model = reduced.model(key)
    inputs = zoo.inputs(key, kind, model)
    with tr.wrapped(model, tr.ToMe(keep=0.5, at="encoder")), torch.no_grad():
        with pytest.raises(ValueError, match=r"pools the patches of this video.*'projector'"):
            model(**inputs)
        tiles = model(**zoo.inputs(key, "single", model)).logits  # and nothing of it is left
    with tr.wrapped(model, tr.ToMe(keep=0.5, at="encoder")), torch.no_grad():
        assert torch.equal(model(**zoo.inputs(key, "single", model)).logits, tiles)
