"""CDPruner with the text tower of the CLIP or SigLIP that the vision tower was taken from."""

from __future__ import annotations

import copy

import pytest
import torch
from models import IMAGE_TOKEN, llava, prompt, vision
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

import tokenreduce as tr
from tokenreduce.kernels.greedy_selection import dpp_selection
from tokenreduce.methods.cdpruner import relevance

LONGEST = 7
TEXTS = ["What is it?", "How many words does a question have that no tower reads in a single piece?", "Where?"]


class Words:
    """A tokenizer: an id for each word, between a begin and an end."""

    pad_token_id = 1

    def __call__(self, text: str, **more: object) -> dict[str, list[int]]:
        return {"input_ids": [90, *(2 + sum(map(ord, word)) % 80 for word in text.split()), 91]}


def tower(kind: str, model) -> CLIPModel | SiglipModel:
    """A whole CLIP or SigLIP whose vision part is the tower of ``model``."""
    words = {
        "vocab_size": 92,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": LONGEST,
        "bos_token_id": 90,
        "eos_token_id": 91,
        "pad_token_id": 1,
    }
    if kind == "siglip":
        words |= {"hidden_size": 24, "projection_size": 24}
    config, cls = {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel)}[kind]
    whole = cls(config(text_config=words, vision_config=vision(kind), projection_dim=12)).eval()
    with torch.no_grad():
        for p in whole.parameters():
            if p.ndim > 1:
                p.normal_(0, 0.3)
    own = {
        k: v for k, v in model.model.vision_tower.state_dict().items() if "post_layernorm" not in k and "head" not in k
    }
    missing, unexpected = whole.vision_model.load_state_dict(
        {k.removeprefix("vision_model."): v for k, v in own.items()}, strict=False
    )
    assert not unexpected
    assert all("post_layernorm" in k or "head" in k or "position_ids" in k for k in missing)
    return whole


def plain_cosine(kind: str, whole, pixels, text: str):
    """(N,) mean over segments of the cosine of each patch with the text, as the formulas say."""
    hidden = whole.vision_model(pixels[None], output_hidden_states=True).hidden_states[-2][0]
    rows = whole.vision_model.post_layernorm(hidden[1:] if kind == "clip" else hidden)
    seen = (
        whole.visual_projection(rows)
        if kind == "clip"
        else torch.cat([whole.vision_model.head(r[None, None]) for r in rows])
    )
    ids = Words()(text)["input_ids"]
    several = len(ids) > LONGEST
    found = []
    while ids:
        piece, ids = ids[:LONGEST], ids[LONGEST:]
        if kind == "siglip" or several:
            piece = piece + [1 if kind == "siglip" else 0] * (LONGEST - len(piece))
        t = whole.get_text_features(input_ids=torch.tensor([piece])).pooler_output[0]
        found.append(torch.cosine_similarity(seen, t[None], dim=1))
    return torch.stack(found).mean(dim=0)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.no_grad()
def test_relevance_is_that_of_the_joint_space(kind):
    """Three samples of one, two and no pictures, a question each; then one question for all, with beams."""
    model = llava(kind)
    whole = tower(kind, model)
    inputs = prompt(model, [1, 2, 0], "left")
    space = tr.text_tower(whole, Words())
    features = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    with tr.wrapped(model, "cdpruner", keep=5, text_tower=space, strict=True):
        model(**inputs, question=TEXTS)
        each = [image.kept().tolist() for image in tr.trace(model).images]
        with tr.question(model, TEXTS[1]):
            model.generate(**inputs, num_beams=2, max_new_tokens=2, do_sample=False)
        shared = [image.kept().tolist() for image in tr.trace(model).images]
        with tr.question(model, TEXTS):
            model.generate(**inputs, num_beams=2, max_new_tokens=2, do_sample=False)
        beams = [image.kept().tolist() for image in tr.trace(model).images]
        assert tr.report(model).substitutes == ()

    def wanted(picture: int, text: str) -> list[int]:
        cosine = plain_cosine(kind, whole, inputs["pixel_values"][picture], text)
        r = relevance(cosine[None] * (-1 if kind == "clip" else 1), torch.tensor([True]))
        return sorted(dpp_selection(features[picture][None], r, 5)[0].tolist())

    of_sample = [wanted(0, TEXTS[0]), wanted(1, TEXTS[1]), wanted(2, TEXTS[1])]
    assert each == of_sample
    of_all = [wanted(i, TEXTS[1]) for i in range(3)]
    assert of_all != of_sample, "the question matters"
    assert {tuple(kept) for kept in shared} == {tuple(kept) for kept in of_all}
    assert {tuple(kept) for kept in beams} == {tuple(kept) for kept in of_sample}


@torch.no_grad()
def test_behind_a_merged_tower_a_token_is_seen_as_its_rows_are():
    model = llava()
    space = tr.text_tower(tower("clip", model), Words())
    inputs = prompt(model, [1, 1], "left")
    with tr.wrapped(model, tr.ToMe(keep=9), tr.CDPruner(keep=4, text_tower=space)):
        model(**inputs, question=TEXTS[:2])
        together = [image.kept().tolist() for image in tr.trace(model).images]
        for b in range(2):
            real = inputs["attention_mask"][b].bool()
            model(
                input_ids=inputs["input_ids"][b : b + 1, real],
                pixel_values=inputs["pixel_values"][b : b + 1],
                question=TEXTS[b],
            )
            assert tr.trace(model).images[0].kept().tolist() == together[b]


@torch.no_grad()
def test_nothing_asked_is_nothing_relevant_and_later_turns_ask_of_their_pictures():
    model = llava()
    space = tr.text_tower(tower("clip", model), Words())
    inputs = prompt(model, [1])
    features = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    with tr.wrapped(model, "cdpruner", keep=5, text_tower=space):
        model(**inputs, question="  ")
        plain = sorted(dpp_selection(features[0][None], torch.ones(1, 16), 5)[0].tolist())
        assert tr.trace(model).images[0].kept().tolist() == plain
        cache = model(**inputs, question=TEXTS[0], use_cache=True).past_key_values
        first = tr.trace(model).images[0].kept().tolist()
        longer = {**inputs, "attention_mask": torch.ones(1, 2 * inputs["input_ids"].shape[1])}
        model(**longer, question=TEXTS[2], past_key_values=cache)
        second = tr.trace(model).images[-1].kept().tolist()
        model(**inputs, question=TEXTS[2])
        assert second == tr.trace(model).images[0].kept().tolist() != first


def test_copies_share_the_tower():
    model = llava()
    space = tr.text_tower(tower("clip", model), Words())
    tr.wrap(model, "cdpruner", keep=5, text_tower=space)
    assert copy.deepcopy(model)._tokenreduce.hooks.pipeline.methods[0].text_tower is space
    assert repr(space) in repr(tr.CDPruner(text_tower=space))


@torch.no_grad()
def test_what_cannot_be_asked_is_refused():
    model = llava()
    whole = tower("clip", model)
    space = tr.text_tower(whole, Words())
    inputs = prompt(model, [1, 1], "left")
    with pytest.raises(
        ValueError, match="model is a CLIPVisionModel of type 'clip_vision_model'; allowed: a whole CLIPModel"
    ):
        tr.text_tower(model.model.vision_tower, Words())
    with pytest.raises(TypeError, match=r"text_tower is a CLIPModel; allowed: tr\.text_tower\(model, tokenizer\)"):
        tr.CDPruner(text_tower=whole)
    narrow = CLIPModel(CLIPConfig(vision_config={**vision("clip"), "hidden_size": 12})).eval()
    with pytest.raises(
        ValueError, match=r"reads rows of 12 channels, the vision tower of this llava model makes rows of 24"
    ):
        tr.wrap(model, "cdpruner", text_tower=tr.text_tower(narrow, Words()))
    with tr.wrapped(model, "cdpruner", keep=5, text_tower=space):
        with pytest.raises(
            ValueError, match=r"only its words do: say them, as in model.generate\(\*\*inputs, question="
        ):
            model(**inputs)
        with pytest.raises(ValueError, match="question has 3 entries; allowed: one text, or 2, one per sample"):
            model(**inputs, question=TEXTS)
        with pytest.raises(TypeError, match=r"question=\[1, 2\]; allowed: a text, or a text per sample"):
            model(**inputs, question=[1, 2])
        with pytest.raises(TypeError, match="allowed: a text"), tr.question(model, []):
            pass
        two = {**inputs, "input_ids": inputs["input_ids"][:1], "attention_mask": None}
        row = [i for i in inputs["input_ids"][0].tolist() if i]
        both = torch.tensor([row + [i for i in inputs["input_ids"][1].tolist() if i]])
        places = torch.cat([torch.arange(len(row)), torch.arange(both.shape[1] - len(row))])[None]
        assert int((both == IMAGE_TOKEN).sum()) == 32
        two |= {"input_ids": both, "position_ids": places}
        with pytest.raises(ValueError, match="several documents in a row"):
            model(**two, question=TEXTS[0], use_cache=False)
    with pytest.raises(ValueError, match="not wrapped"), tr.question(model, TEXTS[0]):
        pass
