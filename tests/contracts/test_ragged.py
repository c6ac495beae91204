"""Contract 4 where images of one layout end with different counts: each equals itself alone, weights and all."""

from __future__ import annotations

import pytest
import reduced
import torch

import tokenreduce as tr
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.groups import Image, group_images
from tokenreduce.layout import Layout
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens

#: every method that merges, at the parameters under which counts follow the images where it has such
MERGING = {
    "holitom": lambda: tr.HoliTom(keep=0.5, tau=0.0, exact=False),
    "holitom means": lambda: tr.HoliTom(keep=0.5, tau=-0.2, plain_mean=True, inner_keep=1.0),
    "tome": lambda: tr.ToMe(keep=0.5, at="projector"),
    "pitome": lambda: tr.PiToMe(keep=0.5, at="projector"),
    "pool": lambda: tr.Pool(keep=0.4),
}


@pytest.mark.parametrize("name", MERGING)
@torch.no_grad()
def test_a_batch_equals_its_samples_alone(name):
    key = "qwen2_5_vl"
    model = reduced.model(key)
    case = zoo.case(key, "videos", model, seed=2)
    method = MERGING[name]()
    with tr.wrapped(model, method):
        together = model(**case.inputs).logits
        stages = [image.reached(-1) for image in tr.trace(model).images]
        sizes = [stage.assign[stage.assign >= 0].bincount() for stage in stages if stage is not None]
        if name == "holitom":
            assert len(sizes[0]) != len(sizes[-1]), "unequal counts"
            assert int(sizes[-1].max()) > 3, "a cluster of several places in the second video"
        for b, mask in enumerate(case.inputs["attention_mask"].bool()):
            alone = model(**zoo.alone(key, case, b)).logits[0, -1]
            last = int(mask.nonzero().max())
            torch.testing.assert_close(together[b, last], alone, atol=reduced.TOLERANCE, rtol=0)


def ragged() -> Reduction:
    return Reduction(
        source=torch.tensor([[0, 2, 3], [1, 0, 0]]),
        assign=torch.tensor([[0, 0, 1, 2], [-1, 0, 0, 0]]),
        merges=True,
        weight=torch.tensor([[0.9, 0.1, 1.0, 1.0], [1.0, 0.2, 0.3, 0.5]]),
        role=torch.tensor([[1, 1, 1, 1], [2, 2, 2, 2]]),
        score=torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]),
        valid=torch.tensor([[True, True, True], [True, False, False]]),
    )


def test_a_plan_is_sliced_whole():
    plan = ragged()
    part = plan.rows(torch.tensor([1]), 1)
    for name in ("assign", "weight", "role", "score"):
        assert torch.equal(getattr(part, name), getattr(plan, name)[1:])
    assert part.source.tolist() == [[1]]
    assert part.valid is None
    assert part.merges
    x = torch.randn(2, 4, 3)
    expected = (x[1, 1:] * torch.tensor([0.2, 0.3, 0.5])[:, None]).sum(0)
    torch.testing.assert_close(part.carry(x[1:])[0, 0], expected)


@pytest.mark.parametrize("name", ["assign", "weight", "role", "score", "valid", "source"])
def test_every_field_must_fit(name):
    plan = ragged()
    tokens = VisualTokens(torch.randn(2, 4, 3), Layout(2, 2))
    plan.check(tokens)
    setattr(plan, name, getattr(plan, name)[:1])
    with pytest.raises(ValueError, match=f"Reduction.{name} has shape .*; allowed"):
        plan.check(tokens)


@pytest.mark.parametrize(
    ("source", "places"),
    [([5, 6, 7, -1, -1], [5, 6, 7, 7, 7]), ([-1, -1, 0, 1, 2], [0, 0, 0, 1, 2]), ([1, -1, 6], [1, 6, 6])],
)
def test_position_ids_never_run_back_at_a_summary(source: list[int], places: list[int]) -> None:
    (group,) = group_images([Image(0, torch.arange(8), Layout(1, 8))], torch.device("cpu"))
    group.features = torch.randn(1, 8, 4)
    own = torch.tensor([source])
    plan = Reduction(source=own, assign=torch.zeros(1, 8, dtype=torch.long), features=torch.randn(1, len(source), 4))
    (after,) = group.apply(plan, "projector", None, "probe")
    assert after.place.tolist() == [places]
