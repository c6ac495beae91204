"""DyMU: thresholds per block, found on pictures, kept in a file, and what each picture is left with."""

from __future__ import annotations

import json
from dataclasses import replace

import models
import pytest
import reduced
import timm
import torch
from encoder_models import TOLERANCE, open_clip_model, transformers_model
from safetensors import safe_open
from standins import FACTS

import tokenreduce as tr
from tokenreduce.calibration import Tower
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.headed_tensors import differing
from tokenreduce.schedules import STAIRCASES, staircase
from tokenreduce.threshold_merging import best_of_all, candidates

LIKE = [0.2, 0.1, 0.3, 0.2]  # what is alike in towers of random weights


def pictures(*shape: int, seed: int = 1) -> torch.Tensor:
    """Pictures of unlike monotony: each is blended with its own mean."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    share = torch.linspace(0, 1, len(x)).view(-1, 1, 1, 1)
    return (1 - share) * x + share * x.mean(dim=(2, 3), keepdim=True)


@pytest.mark.parametrize("path", ["instance", "batch"])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.no_grad()
def test_each_picture_of_a_batch_merges_as_by_itself(kind, path):
    model, pixels = transformers_model(kind), pictures(5, 3, 32, 32)
    with tr.wrapped(model, tr.DyMU(calibration=LIKE, path=path)):
        together, kept = model(pixels).last_hidden_state, tr.report(model).tokens_kept
        for i, one in enumerate(pixels.split(1)):
            torch.testing.assert_close(
                together[i : i + 1], model(one).last_hidden_state, atol=TOLERANCE, rtol=TOLERANCE
            )
            assert tr.report(model).tokens_kept == [kept[i]]
    assert kept[0][0] > kept[-1][0], "the monotonous picture has fewer"


def test_only_what_is_greater_than_the_threshold_merges():
    keys = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [0.6, 0.8]]])  # A: 0 and 2, B: 1 and 3
    found = candidates(keys, 0)
    assert found.score[0].tolist() == pytest.approx([1.0, 0.8])
    tokens = tr.VisualTokens(
        keys, tr.Layout(2, 2), stage="encoder", layer=0, signals={tr.DyMU().plan(FACTS)[0].needs[0]: keys}
    )
    for threshold, assign in ((0.0, [0, 0, 1, 1]), (float(found.score[0, 1]), [1, 1, 0, 2]), (0.999, [1, 1, 0, 2])):
        tokens.amount = threshold
        assert tr.DyMU(calibration=[threshold]).reduce(tokens).assign.tolist() == [assign]
    tokens.amount = 0.0
    assert tr.DyMU(calibration=[0.0], max_r=1).reduce(tokens).assign.tolist() == [[1, 1, 0, 2]]


def test_schedules_end():
    for depth in (1, 5, 24, 27):
        for total in (*range(0, 60, 7), 100, 382, 537):
            for kind in STAIRCASES:
                counts = staircase(total, depth, kind)
                assert sum(counts) == total
                assert min(counts) >= 0
                assert len(counts) == depth


def test_the_best_of_all_pictures():
    scores = [torch.tensor([[0.9, 0.5, -0.2], [0.8, 0.7, -torch.inf]]), torch.tensor([[0.6]])]
    counts, following = best_of_all(scores, 3)
    assert [count.tolist() for count in counts] == [[1, 2], [0]]
    assert following == pytest.approx(0.6)
    assert best_of_all(scores, 5)[1] == 0.0  # below zero
    assert [count.tolist() for count in best_of_all(scores, 99)[0]] == [[3, 2], [1]]


def clip_calibration(**more) -> tuple[torch.nn.Module, tr.Calibration]:
    model = transformers_model("clip")
    batches = [pictures(8, 3, 32, 32, seed=seed) for seed in range(6)]
    return model, tr.calibrate(model, batches, **{"keep": 8, **more})


@pytest.mark.parametrize("schedule", STAIRCASES)
def test_thresholds_leave_so_many_tokens_on_average(schedule):
    model, found = clip_calibration(schedule=schedule)
    assert (found.views, found.batch, found.kept, len(found.thresholds)) == (48, 8, 8.0, 4)
    assert not tr.is_wrapped(model)
    with tr.wrapped(model, "dymu", calibration=found), torch.no_grad():
        model(pictures(32, 3, 32, 32, seed=99))
        kept = [own[0] for own in tr.report(model).tokens_kept]
    assert abs(sum(kept) / len(kept) - 8) < 1.5
    assert max(kept) - min(kept) >= 4


def test_what_a_block_cannot_merge_others_do():
    """Of 16 patches 4, 4, 3 and 3 are to merge, but of the five that reach the last block at most two can, which leaves three."""
    _, found = clip_calibration(keep=2)
    assert found.kept < 3
    large = {"pixel_values": pictures(1, 3, 48, 48), "interpolate_pos_encoding": True}
    with pytest.raises(ValueError, match=r"keep=1 of 36 patches: .* 4 blocks leave at least 3"):
        tr.calibrate(transformers_model("siglip"), [large], keep=1)


def test_the_same_pictures_give_the_same_thresholds():
    _, first = clip_calibration()
    _, again = clip_calibration()
    assert first == again
    _, other = clip_calibration(max_r=1)
    assert other.kept > first.kept
    assert len(first.corpus) == 64


@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_a_file_holds_all_of_it(tmp_path, ending):
    _, found = clip_calibration()
    path = tmp_path / f"thresholds.{ending}"
    found.save(path)
    assert tr.DyMU(calibration=path).calibration == found
    assert tr.DyMU(calibration=str(path)) == tr.DyMU(calibration=found.content()) == tr.DyMU(calibration=found)
    with pytest.raises(FileExistsError, match=r"thresholds.* exists; .*overwrite=True"):
        found.save(path)
    found.save(path, overwrite=True)
    with pytest.raises(ValueError, match=r"allowed: a file name ending in .json or .safetensors"):
        found.save(tmp_path / "thresholds.txt")
    if ending == "safetensors":
        with safe_open(path, framework="pt") as file:
            assert file.get_tensor("thresholds").dtype == torch.float64


def test_a_calibration_is_refused_by_another_tower(tmp_path):
    _, found = clip_calibration()
    for other, said in (
        (transformers_model("siglip"), r"type 'clip_vision_model', not 'siglip_vision_model'; prefix 1, not 0"),
        (models.llava("clip", grid=6), r"blocks 4, not 3.*tokens 16, not 36.*tokenreduce calibrate MODEL"),
    ):
        with pytest.raises(
            ValueError, match=r"method='dymu': the calibration belongs to another vision tower.*" + said
        ):
            tr.wrap(other, "dymu", calibration=found)
        assert not tr.is_wrapped(other)
    tower = Tower("a", 3, 24, 1, 1, None)
    assert differing(tower, Tower("a", 3, 24, 1, 1, 576)) == [], "what is not known is no difference"
    model = models.llava("clip")
    for thresholds, said in (([0.5] * 2, "2 thresholds for the 3 blocks"), ([0.5] * 5, "allowed: 3 to 4")):
        with pytest.raises(ValueError, match=said):
            tr.wrap(model, "dymu", calibration=thresholds)
    with tr.wrapped(model, "dymu", calibration={0: 0.2, 2: 0.3}), torch.no_grad():
        model(**models.prompt(model, [1]))
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({"kind": "tokenreduce run", "thresholds": [1]}))
    for given, kind, said in (
        (broken, ValueError, r"does not hold thresholds; allowed: a .json or .safetensors file"),
        (tmp_path / "none.json", ValueError, r"none.json' is no file; make one with tokenreduce calibrate"),
        ({"thresholds": [0.5], "colour": 3}, ValueError, r"\['colour'\] is no part of a calibration"),
        ([], ValueError, r"thresholds=\[\]; allowed: one number in \[-1, 1\]"),
        ([0.5, 1.5], ValueError, r"allowed: one number in \[-1, 1\] per block"),
        ({"first": 0.5}, TypeError, r"allowed: .* a dictionary of them by block"),
    ):
        with pytest.raises(kind, match=said):
            tr.DyMU(calibration=given)
    with pytest.raises(ValueError, match=r"keep=8 and calibration=.*give one of them"):
        tr.DyMU(keep=8, calibration=[0.5])


def test_what_cannot_be_calibrated_is_refused():
    model = transformers_model("clip")
    with pytest.raises(ValueError, match=r"batches brought no picture"):
        tr.calibrate(model, [], keep=8)
    with pytest.raises(ValueError, match=r"schedule='falling'; allowed: 'constant', 'linear', 'reverse_linear'"):
        tr.calibrate(model, [], keep=8, schedule="falling")
    with pytest.raises(ValueError, match=r"training mode.*model.eval"):
        tr.calibrate(model.train(), [], keep=8)
    with tr.wrapped(model.eval(), "tome"), pytest.raises(ValueError, match=r"model is wrapped; call tr.unwrap"):
        tr.calibrate(model, [], keep=8)
    assert not tr.is_wrapped(model)


def test_without_a_calibration_the_numbers_are_those_of_tome_and_the_report_says_so():
    model = models.llava("clip", grid=6)
    inputs = models.prompt(model, [2])
    with torch.no_grad():
        with tr.wrapped(model, "tome", keep=9):
            expected = model(**inputs).logits
        with tr.wrapped(model, "dymu", keep=9):
            assert torch.equal(model(**inputs).logits, expected)
            assert "as by ToMe, in place of thresholds: no calibration was given" in str(tr.report(model))
    with pytest.raises(ValueError, match=r"strict=True would run .* in place of thresholds"):
        tr.wrap(model, "dymu", keep=9, strict=True)


@pytest.mark.parametrize("library", ["timm", "open_clip"])
def test_encoders_of_other_libraries(library):
    torch.manual_seed(0)
    if library == "timm":
        model = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3).eval()
        run = model
    else:
        model = open_clip_model(False)
        run = model.encode_image
        with pytest.raises((TypeError, RuntimeError, AttributeError)):
            tr.calibrate(model, [["no picture"]], keep=8)
    found = tr.calibrate(model, [pictures(8, 3, 32, 32, seed=seed) for seed in range(3)], keep=0.5)
    assert (found.views, found.kept) == (24, 8.0)
    with tr.wrapped(model, "dymu", calibration=found), torch.no_grad():
        run(pictures(8, 3, 32, 32))
        assert len({own[0] for own in tr.report(model).tokens_kept}) > 1


#: tiles, packed, packed with windows, squares of patches
KEYS = ["llava_next", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm", "gemma3", "llava_onevision"]


@pytest.mark.parametrize("key", [KEYS[1], *(pytest.param(key, marks=pytest.mark.long) for key in (KEYS[0], *KEYS[2:]))])
@torch.no_grad()
def test_families(key):
    """Calibrated on its own pictures, a batch is left with as many tokens on average, and each sample equals itself alone."""
    model = reduced.model(key)
    case = zoo.case(key, ([["i0"], ["i1", "i2"]], "left"), model, seed=2)
    found = tr.calibrate(model, [case.inputs], keep=0.5)
    # of these very pictures one pair lies on each threshold, to either side by rounding
    found = replace(found, thresholds=tuple(value + 1e-4 for value in found.thresholds))
    with tr.wrapped(model, "dymu", calibration=found):
        together, report = model(**case.inputs).logits, tr.report(model)
        for b, mask in enumerate(case.inputs["attention_mask"].bool()):
            alone = model(**zoo.alone(key, case, b)).logits[0, -1]
            torch.testing.assert_close(together[b, int(mask.nonzero().max())], alone, atol=reduced.TOLERANCE, rtol=0)
            assert tr.report(model).tokens_kept == [report.tokens_kept[b]]
    kept, came = (sum(sum(own) for own in counts) for counts in (report.tokens_kept, report.tokens_in))
    assert abs(kept / came - 0.5) < 0.2
