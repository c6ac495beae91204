"""ID-Selection by what the prompt asks, and AIM by the keys of the tower, against plain loops on the bare model."""

from __future__ import annotations

import pytest
import torch
from eager_maps import maps
from models import llava, prompt
from reduced import entering

import tokenreduce as tr


def scaled(x):
    return (x - x.min()) / (x.max() - x.min())


def chosen(x, importance, k, gamma=20.0):
    """Equations 7 to 9, one token at a time."""
    unit, score, taken = torch.nn.functional.normalize(x.double(), dim=-1), scaled(importance.double()), []
    for _ in range(k):
        left = [i for i in range(len(x)) if i not in taken]
        i = max(left, key=lambda j: (float(score[j]), -j))
        taken.append(i)
        distance = (1 - unit @ unit[i]).clamp_min(0)
        score = (score - score[i] * torch.exp(-gamma * distance**2)).clamp_min(0)
    return sorted(taken)


@pytest.mark.parametrize("score", ["cross_modal", "unified"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_id_selection_asks_the_prompt(score, side):
    model, eager = llava(), llava(attention="eager")
    inputs = prompt(model, [2, 1, 0], side)
    layer, vision = eager.model.language_model.layers[2], eager.model.vision_tower.encoder.layers[-2]
    entered = []
    handle = layer.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    decoder, tower = maps(eager, inputs, [layer.self_attn, vision.self_attn])
    handle.remove()
    with tr.wrapped(model, "id_selection", keep=4, score=score), torch.no_grad():
        model(**inputs)
        images = tr.trace(model).images
        assert tr.report(model).substitutes == ()
    for number, image in enumerate(images):
        last = int(inputs["attention_mask"][image.sample].nonzero()[-1])
        asked = decoder[0][image.sample].mean(dim=0)[last, image.columns]
        if score == "unified":
            asked = (scaled(asked) + scaled(tower[0][number, :, 0, 1:].mean(dim=0))) / 2
        assert image.kept(1).tolist() == list(range(16))
        assert image.kept(2).tolist() == chosen(entered[0][image.sample, image.columns], asked, 4)


def test_id_selection_teaches_about_layers():
    with pytest.raises(ValueError, match="score='text'; allowed: None, 'cls', 'global_mean', 'cross_modal', 'unified'"):
        tr.IDSelection(score="text")
    with pytest.raises(ValueError, match="layer=-1; allowed: an int >= 0, of decoder layers"):
        tr.IDSelection(layer=-1)
    with pytest.raises(ValueError, match="layer=7 at stage 'llm'; allowed: an int from 0 to 4"):
        tr.wrap(llava(), "id_selection", score="cross_modal", layer=7)


@pytest.mark.parametrize("keep", [9, 5])
@torch.no_grad()
def test_aim_merges_by_keys_what_enters_the_projector(keep):
    """Rounds of at most half; keys and rows follow the same plain means."""
    model = llava()
    inputs = prompt(model, [1])
    tower = model.model.vision_tower
    held = []
    handle = tower.encoder.layers[-2].self_attn.k_proj.register_forward_hook(lambda *given: held.append(given[2]))
    rows = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][0, 1:]
    handle.remove()
    keys, rows = list(held[0][0, 1:]), list(rows)
    places = list(range(16))
    while len(keys) > keep:
        even, odd = range(0, len(keys), 2), range(1, len(keys), 2)
        best = {a: max((float(torch.cosine_similarity(keys[a], keys[b], dim=0)), -b) for b in odd) for a in even}
        order = sorted(even, key=lambda a: (-best[a][0], a))
        r = min(len(keys) // 2, len(keys) - keep)
        into = {b: [b] + [a for a in order[:r] if -best[a][1] == b] for b in odd}
        left = [[a] for a in order[r:]] + list(into.values())
        places = [places[group[0]] for group in left]
        keys, rows = ([torch.stack([x[i] for i in group]).mean(0) for group in left] for x in (keys, rows))
    expected = torch.stack([rows[i] for i in sorted(range(keep), key=lambda i: places[i])])
    with tr.wrapped(model, "aim", keep=keep, prune=False, metric="keys", strict=True):
        found, trace = entering(model, inputs)
    assert trace.images[0].kept().tolist() == sorted(places)
    first = int(trace.images[0].columns[0])
    wanted = model.model.multi_modal_projector(expected)
    torch.testing.assert_close(found[0, first : first + keep], wanted, atol=2e-4, rtol=1e-4)


def test_aim_teaches_about_keys():
    with pytest.raises(ValueError, match="metric='key'; allowed: 'features', 'keys'"):
        tr.AIM(metric="key")
