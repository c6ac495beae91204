"""The inputs of the zoo are what the real processors make: same tensors, same tokens around the same placeholders."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from models import TRANSFORMERS
from zoo_processors import NAMES, QWEN, WORD, processor, prompt

from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.tiny_models.common import NEWLINE, SIDE, WORDS


def pixels(key: str, name: str) -> np.ndarray:
    """An image (H, W, 3) or a video (T, H, W, 3) for the shape the zoo speaks of."""
    family = zoo.FAMILIES[key]
    if name == "v":
        shape = family.film_shape
        size = (2 * shape[0], 4 * shape[1], 4 * shape[2]) if key in QWEN else (shape, SIDE, SIDE)
    else:
        size = shape = family.shapes[int(name[1:])]
        if key in QWEN:
            size = (4 * shape[0], 4 * shape[1])
        elif key == "internvl":
            size = (SIDE, SIDE * max(1, shape - 1))
        elif key in ("idefics3", "smolvlm"):
            size = tuple(SIDE * max(1, n) for n in shape)
    return np.random.default_rng(0).integers(1, 255, (*size, 3), dtype=np.uint8)


def outline(inputs: dict) -> list[list[tuple[int, int]]]:
    """Tokens of each sample with their token type; words and newlines in a row count once."""
    ids = torch.where(inputs["input_ids"] >= WORDS, WORDS, inputs["input_ids"])
    ids = torch.where(ids == NAMES["<frames>"], WORDS, ids)
    kinds = inputs.get("mm_token_type_ids", inputs.get("token_type_ids", torch.zeros_like(ids)))
    out = []
    for row, kind, mask in zip(ids, kinds, inputs["attention_mask"].bool()):
        pairs = itertools.groupby(zip(row[mask].tolist(), kind[mask].tolist()))
        out.append([pair for pair, run in pairs for _ in range(1 if pair[0] in (WORDS, NEWLINE) else len(list(run)))])
    return out


CASES = [(key, kind) for key in zoo.FAMILIES for kind in ("single", "mixed", "text", "video", "image_and_video")]
CASES = [(key, kind) for key, kind in CASES if kind in zoo.kinds(key)]
# Aya Vision cuts images as InternVL does, and names its tiles by words that a tokenizer of whole words does not have
CASES = [(key, kind) for key, kind in CASES if key != "aya_vision"]
# the processor of PaliGemma refuses text alone, in a batch too
CASES = [(key, kind) for key, kind in CASES if not key.startswith("paligemma") or kind == "single"]


@functools.cache
def model(key: str):
    return zoo.build(key)


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize(("key", "kind"), CASES)
def test_inputs_are_those_of_the_processor(key, kind, monkeypatch):
    if key == "smolvlm":  # a package for spelling out the number of frames
        monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", lambda n: WORD)
    whole = processor(key)
    if whole is None:
        pytest.skip("no processor of this family is put together here")
    plan = zoo.KINDS[kind][0]
    images = [[pixels(key, name) for name in names if name != "v"] for names in plan]
    videos = [pixels(key, name) for names in plan for name in names if name == "v"]
    videos = [videos] if key == "smolvlm" else videos
    got = whole(
        text=[prompt(key, names) for names in plan],
        images=images if any(images) else None,
        **({"videos": videos} if any("v" in names for names in plan) else {}),
        padding=True,
        return_tensors="pt",
    )
    made = zoo.inputs(key, kind, model(key))
    got.pop("labels", None)  # of PaliGemma, all ignored
    assert set(got) == set(made)
    assert outline(got) == outline(made)
    for name in set(made) - {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"}:
        assert tuple(got[name].shape) == tuple(made[name].shape), name
        assert got[name].dtype == made[name].dtype or TRANSFORMERS < (5, 23), name
        if not made[name].is_floating_point():
            assert torch.equal(got[name].long(), made[name]), name
