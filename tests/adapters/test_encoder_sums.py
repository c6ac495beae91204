"""Inside a block: the attention of its own rows, sums beside selected rows, tokens that are gone, and what methods note."""

from __future__ import annotations

import pytest
import torch
from encoder_models import (
    TOLERANCE,
    open_clip_model,
    shaped,
    timm_model,
    torchvision_model,
    transformers_model,
    whole_model,
)
from encoder_oracle import attend, behind_last_block, entering, norm1, same_rows, scale
from models import llava, prompt

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of
from tokenreduce.mixing import Mix
from tokenreduce.reduction import Reduction
from tokenreduce.signals import AttentionReceived, ClsAttention

TOWERS = {
    **{
        name: (timm_model, name)
        for name in ("plain", "deit_distilled", "dinov2_reg", "qk_norm", "mae_pool", "siglip_map")
    },
    **{f"hf_{name}": (transformers_model, name) for name in ("clip", "siglip", "dinov3", "internvl_qk_norm")},
    "open_clip": (open_clip_model, False),
    "torchvision": (torchvision_model,),
}


def built(name):
    build, *args = TOWERS[name]
    torch.manual_seed(0)
    model = build(*args)
    model = getattr(model, "visual", model)
    size = model.patch_embed.img_size[0] if hasattr(model, "patch_embed") else 32
    return model, torch.randn(2, 3, size, size)


class Summed(tr.Method, register=False):
    """In blocks 1 and 2, the half that is attended to most stays, each of them with 0.3 of the token ranked as far below the
    middle; the last of the others becomes the sum of all of them."""

    name = "summed"
    title = "for tests"
    stages = ("encoder",)

    def plan(self, facts):
        kind = ClsAttention if facts.has_cls else AttentionReceived
        return tuple(tr.Step("encoder", layer=b, needs=(kind(b),), amount=1) for b in (1, 2))

    def reduce(self, tokens):
        p, n = tokens.prefix, tokens.num_tokens - tokens.prefix
        (score,) = tokens.signals.values()
        order = score[:, p:].argsort(dim=1, descending=True, stable=True) + p
        k = n // 2
        rest = order[:, k:]
        front = torch.arange(p).expand(len(order), p)
        source = torch.cat([front, order[:, :k], rest[:, -1:]], dim=1)
        assign = torch.full(tokens.features.shape[:2], -1).scatter(1, source, torch.arange(p + k + 1).expand_as(source))
        share = torch.zeros(len(order), k + 1, n - k)
        share[:, torch.arange(min(k, n - k)), torch.arange(min(k, n - k))] = 0.3
        share[:, k] = 1
        share[:, k, -1] = 0
        rows = torch.arange(p, p + k + 1).expand(len(order), -1)
        return Reduction(source, assign, mix=Mix(rows, rest, share))


def by_hand(model, pixels):
    """The last block's rows, its parts called one by one, attention maps and all."""
    family = family_of(model)
    x, rope = entering(model, pixels)
    p, source = family.facts().tower_prefix, torch.arange(x.shape[1]).expand(x.shape[:2])
    for i, block in enumerate(family.blocks):
        maps: list[torch.Tensor] = []
        m = block.module
        x = x + scale(m, 1, attend(block, norm1(m)(x), None, None if rope is None else (rope, source, p), maps))
        if i in (1, 2):
            score = maps[0][:, :, 0].mean(1) if family.facts().has_cls else maps[0].mean((1, 2))
            rows, places = [], []
            for own, ranked, place in zip(x, score, source):
                order = [p + j for j in sorted(range(len(own) - p), key=lambda j: (-ranked[p + j].item(), j))]
                k = len(order) // 2
                kept = [
                    own[t] + (0.3 * own[order[k + j]] if k + j < len(order) else 0) for j, t in enumerate(order[:k])
                ]
                rows.append(torch.stack([*own[:p], *kept, sum(own[t] for t in order[k:])]))
                places.append(place[[*range(p), *order[:k], order[-1]]])
            x, source = torch.stack(rows), torch.stack(places)
        x = x + scale(m, 2, block.mlp(block.norm2(x)))
    return x


@pytest.mark.parametrize("name", TOWERS)
def test_sums_by_attention_equal_a_forward_by_hand(name):
    model, pixels = built(name)
    with torch.no_grad():
        expected = by_hand(model, pixels)
    with tr.wrapped(model, Summed(), output_length="reduced"), behind_last_block(model) as seen:
        for grad in (False, False, True):  # directly, known to be right, and by way of full width
            with torch.set_grad_enabled(grad):
                model(pixels)
    same_rows(seen, expected)


@torch.no_grad()
def test_padded_images_equal_each_by_itself():
    grids = [(3, 5), (2, 6), (4, 4)]
    model, inputs = whole_model("siglip2"), shaped(*grids, length=18)
    with tr.wrapped(model, Summed()):
        together = model.get_image_features(**inputs).pooler_output
        for i, (height, width) in enumerate(grids):
            n = height * width
            one = {name: x[i : i + 1] if name == "spatial_shapes" else x[i : i + 1, :n] for name, x in inputs.items()}
            alone = model.get_image_features(**one).pooler_output
            torch.testing.assert_close(together[i : i + 1], alone, atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_dropped_patches_of_several_images_do_not_reach_the_language_model():
    model = llava()
    inputs = prompt(model, [2, 1], "left")
    with tr.wrapped(model, Summed()):
        model(**inputs)
        trace = tr.trace(model)
    for image in trace.images:
        standing = image.standing_for()
        assert len(image.kept()) == 5  # 16, 9, 5
        assert (standing >= 0).sum() == 5
        assert standing[image.kept()].tolist() == list(range(5))


class Noting(tr.Method, register=False):
    """Drops the first patch in each block and notes, by place, in which; looks its notes up as they come back."""

    name = "noting"
    title = "for tests"
    stages = ("encoder",)

    def plan(self, facts):
        return tuple(tr.Step("encoder", layer=b, amount=1) for b in range(3))

    def reduce(self, tokens):
        batch, n = tokens.features.shape[:2]
        noted = tokens.notes.get("gone")
        if noted is None:
            noted = torch.full((batch, tokens.prefix + tokens.layout.num_tokens), -1)
        assert (noted.gather(1, tokens.source) == -1).all()
        assert (noted >= 0).sum() == batch * tokens.layer
        first = tokens.source[:, tokens.prefix, None]
        kept = torch.arange(n)[torch.arange(n) != tokens.prefix].expand(batch, -1)
        return Reduction.select(kept, n, notes={"gone": noted.scatter(1, first, tokens.layer)})


@torch.no_grad()
def test_notes_come_back_by_place():
    model, pixels = built("plain")
    with tr.wrapped(model, Noting()):
        model(pixels)
        assert tr.report(model).tokens_kept == [[13], [13]]
    model = whole_model("siglip2")
    with tr.wrapped(model, Noting()):
        model.get_image_features(**shaped((3, 5), (2, 6), (4, 4), length=18))
        assert tr.report(model).tokens_kept == [[12], [9], [13]]


def test_what_has_no_place_in_a_block_is_refused():
    model, pixels = built("plain")

    class Made(Summed, register=False):
        def reduce(self, tokens):
            return Reduction(tokens.source, tokens.source, features=tokens.features)

    with (
        tr.wrapped(model, Made()),
        pytest.raises(ValueError, match="makes the features of its rows; allowed: tokens selected"),
    ):
        model(pixels)
    with pytest.raises(ValueError, match=r"EvaBlock are out of sight once they are rotated"):
        tr.wrap(timm_model("eva02"), Summed())
    assert not tr.is_wrapped(model)
    with pytest.raises(ValueError, match=r"has no \[CLS\] token; ask for AttentionReceived\(1\) instead"):
        tr.wrap(timm_model("mae_pool"), WithCls())


class WithCls(Summed, register=False):
    def plan(self, facts):
        return (tr.Step("encoder", layer=1, needs=(ClsAttention(1),), amount=1),)


def test_a_mix_that_fits_nothing_is_refused():
    tokens = tr.VisualTokens(features=torch.randn(1, 6, 4), layout=tr.Layout(1, 6), stage="encoder", layer=0)
    one = torch.zeros(1, 1, dtype=torch.long)
    fits = Reduction.select(torch.tensor([[0, 1]]), 6, mix=Mix(one, one, torch.ones(1, 1, 1)))
    assert torch.equal(fits.check(tokens).carry(tokens.features)[0, 0], 2 * tokens.features[0, 0])
    wrong = Reduction.select(torch.tensor([[0, 1]]), 6, mix=Mix(one, one, torch.ones(1, 1, 2)))
    with pytest.raises(ValueError, match=r"shares of shape \(1, 1, 2\).*allowed: \(B, R, E\), \(B, R\) and \(B, E\)"):
        wrong.check(tokens)
    tokens.stage = "projector"
    with pytest.raises(ValueError, match="belongs to a selection of equal counts at stage 'encoder'"):
        fits.check(tokens)
