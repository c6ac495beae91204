"""A query compressor: new rows by plain loops, the sequence that is really shorter, and what training makes of it."""

from __future__ import annotations

import math

import pytest
import torch
from models import IMAGE_TOKEN, llava, prompt

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of
from tokenreduce.eval import demo
from tokenreduce.kernels.grid_partition import grid_partition
from tokenreduce.learned_module import Learned
from tokenreduce.methods.query_compressor import TEXT, Compressor
from tokenreduce.tokens import Rows


def norm(x, part=None):
    unit = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)
    return unit if part is None else unit * part.weight + part.bias


@torch.no_grad()
def by_hand(part: Compressor, x, size, text, region, k: int):
    """(K, D) new rows and (N,) attention of one picture ``x`` (N, D); ``text`` (Q, D)."""
    asked = part.question.weight @ norm(text.mean(dim=0)) if part.question is not None and len(text) else 0.0
    rows, attention = [], torch.zeros(len(x))
    for r in range(k):
        own = (region == r).nonzero()[:, 0].tolist()
        mean = sum(size[n] * x[n] for n in own) / sum(size[n] for n in own)
        query = part.query.weight @ norm(mean, part.norm) + part.query.bias + asked
        weight = [
            float(size[n] * math.exp(query @ (part.key.weight @ norm(x[n], part.norm)) / math.sqrt(len(query))))
            for n in own
        ]
        for n, w in zip(own, weight):
            attention[n] = w / sum(weight)
        read = sum(attention[n] * x[n] for n in own)
        inner = part.first.weight @ norm(read, part.norm) + part.first.bias + asked
        rows.append(read + part.second.weight @ torch.nn.functional.gelu(inner) + part.second.bias)
    return torch.stack(rows), attention


def random_part(width: int, asks: bool) -> Compressor:
    torch.manual_seed(3)
    part = Compressor(width, 7, asks)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return part


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("k", [1, 4, 14])
def test_rows_are_those_of_plain_loops(asks, k):
    torch.manual_seed(k)
    x, size = torch.randn(2, 15, 6), torch.randint(1, 4, (2, 15)).float()
    texts = [torch.randn(3, 6), torch.empty(0, 6)]  # the second asks nothing
    part = random_part(6, asks)
    signals = {TEXT: Rows.of(texts, x.device)} if asks else {}
    tokens = tr.VisualTokens(x, tr.Layout(3, 5), size=size, signals=signals, learned=Learned(part))
    plan = tr.QueryCompressor(keep=k, asks=asks, hidden=7).reduce(tokens).check(tokens)
    region, centre = grid_partition(3, 5, k)
    for b in range(2):
        rows, attention = by_hand(part, x[b], size[b], texts[b], region, k)
        torch.testing.assert_close(plan.features[b], rows, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(plan.score[b], attention, atol=1e-6, rtol=1e-5)
        assert plan.source[b].tolist() == centre.tolist()
        assert plan.assign[b].tolist() == region.tolist()


@torch.no_grad()
def test_it_equals_the_sequence_that_is_really_shorter():
    model, k = llava(), 3
    inputs = prompt(model, [2])
    (ids,) = inputs["input_ids"]
    part = random_part(32, asks=True)
    method = tr.QueryCompressor(hidden=7)
    weights = tr.Weights.made(method.header(family_of(model).offers(), {}), part)
    with tr.wrapped(model, "query_compressor", weights=weights, keep=k, output_length="reduced"):
        found = model(**inputs).logits
        regions = [image.layout for image in tr.trace(model).images]
    region, centre = grid_partition(regions[0].height, regions[0].width, k)
    embeds = model.get_input_embeddings()(ids)
    text = embeds[(ids != IMAGE_TOKEN) & (ids > 3)]  # ids that the configuration names are no question
    pictures = model.model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
    columns = (ids == IMAGE_TOKEN).nonzero()[:, 0].view(2, -1)
    rows = {}
    for own, x in zip(columns, pictures):
        new, _ = by_hand(part, x, torch.ones(len(x)), text, region, k)
        rows |= dict(zip(own[centre].tolist(), new))
    for i in range(len(ids)):
        if ids[i] != IMAGE_TOKEN:
            rows[i] = embeds[i]
    place = sorted(rows)
    shorter = torch.stack([rows[i] for i in place])[None]
    hidden = model.model.language_model(inputs_embeds=shorter, position_ids=torch.tensor([place])).last_hidden_state
    torch.testing.assert_close(found, model.lm_head(hidden), atol=2e-4, rtol=2e-4)


def test_trained_rows_serve_scenes_and_budgets_they_were_not_trained_for(tmp_path):
    model, processor = demo.load()

    def asked(questions):
        text = [demo.prompt(q.question) for q in questions]
        return dict(processor(images=[q.image for q in questions], text=text, return_tensors="pt", padding=True))

    training, others = demo.questions("train", 80, per_image=4), asked(demo.questions("test", 40, per_image=1))

    def off(keep, weights) -> tuple[float, float]:
        """Divergence from the whole picture, and the share of other answers."""
        with tr.wrapped(model, "query_compressor", weights=weights, keep=keep), torch.no_grad():
            own, whole = (model(**others, **more).logits[:, -1].log_softmax(-1) for more in ({}, {"tr_keep": None}))
            assert {len(image.kept(0)) for image in tr.trace(model).images} == {144}
            model(**others)
            assert {len(image.kept(0)) for image in tr.trace(model).images} == {keep}
        away = torch.nn.functional.kl_div(own, whole, reduction="batchmean", log_target=True)
        return float(away), float((own.argmax(-1) != whole.argmax(-1)).float().mean())

    def data(step):
        return asked([training[(8 * step + i) % len(training)] for i in range(8)])

    found = tr.train(model, "query_compressor", data, keep=9, settings=tr.TrainingSettings(steps=25))
    saved = found.weights.save(tmp_path / "compressor.safetensors")
    assert sum(found.losses[-5:]) < 0.5 * sum(found.losses[:5])
    for keep in (9, 12):
        (before, differing), (after, differs) = off(keep, None), off(keep, saved.path)
        assert after < 0.5 * before
        assert differs < 0.5 * differing
    new = tr.QueryCompressor().untrained(family_of(model).offers()).state_dict()
    same = [name for name, x in found.weights.tensors.items() if torch.allclose(x, new[name])]
    assert same == [], "every tensor has a gradient"


@torch.no_grad()
def test_a_question_changes_rows_unless_it_is_not_asked():
    model = llava()
    first, second = prompt(model, [1]), prompt(model, [1])
    second["input_ids"][:, -2] = 9 + (first["input_ids"][:, -2] == 9)
    for asks in (True, False):
        part = random_part(32, asks)
        weights = tr.Weights.made(tr.QueryCompressor(hidden=7, asks=asks).header(family_of(model).offers(), {}), part)
        seen = []
        with tr.wrapped(model, "query_compressor", weights=weights, keep=3):
            for inputs in (first, second):
                model(**inputs)
                seen.append(tr.trace(model).images[0].stages[-1].score)
        assert torch.equal(*seen) != asks


def test_what_cannot_be_is_refused():
    for wrong, words in (({"hidden": 0}, "hidden=0"), ({"asks": 1}, "asks=1"), ({"keep": 0}, "keep=0")):
        with pytest.raises((ValueError, TypeError), match=words):
            tr.QueryCompressor(**wrong)
