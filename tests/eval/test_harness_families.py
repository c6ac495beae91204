"""The plug-in over several of lmms-eval's models: each runs, is measured per question, and keeps what was asked for."""

from __future__ import annotations

import pytest

import tokenreduce as tr
from tokenreduce.eval.recipe import Recipe

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; pip install 'tokenreduce[eval]'")

SMALL = {"min_pixels": 256, "max_pixels": 4096}
FAMILIES = {  # model_type: (batch, arguments of the base model)
    "llava": (1, {}),
    "llava_next": (1, {}),
    "llava_onevision": (1, {}),
    "qwen2_vl": (2, SMALL),
    "qwen2_5_vl": (2, SMALL),
    "qwen3_vl": (2, SMALL),
    "internvl": (1, {}),
}


@pytest.mark.parametrize("folder", FAMILIES, indirect=True)
def test_family(folder, evaluate):
    from lmms_eval.models import get_model

    family, place = folder
    batch, arguments = FAMILIES[family]
    lm = get_model("tokenreduce")(pretrained=str(place), device="cpu", batch_size=batch, **arguments)
    lm.reused = True
    evaluate(lm, limit=4)
    plain = {row["doc_id"]: row for row in lm.measured["samples"]}
    lm.use(Recipe.of("random", 0.5))
    evaluate(lm, limit=4)
    reduced = {row["doc_id"]: row for row in lm.measured["samples"]}
    assert sorted(plain) == sorted(reduced) == [0, 1, 2, 3]
    for doc_id, row in reduced.items():
        whole = plain[doc_id]
        assert row["batch"] == batch
        assert whole["tokens_in"] >= row["tokens_in"] > row["tokens_kept"] > 0  # newline tokens are placeholders, too
        assert abs(row["tokens_kept"] / row["tokens_in"] - 0.5) < 0.1
        assert row["flops"] < whole["flops"]
    assert sum(r["flops_unreduced"] for r in reduced.values()) == pytest.approx(sum(r["flops"] for r in plain.values()))
    lm.use(Recipe())
    assert not tr.is_wrapped(lm.model)
