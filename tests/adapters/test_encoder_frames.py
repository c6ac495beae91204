"""Frames of a video that go on as one sequence from a block on, and come apart again behind the last one."""

from __future__ import annotations

import pytest
import reduced
import torch
from encoder_models import timm_model, tower, transformers_model
from encoder_oracle import attend, behind_last_block, entering, norm1, same_rows, scale

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of
from tokenreduce.reduction import Reduction


class Clips(tr.Method, register=False):
    """One patch leaves in the middle of block 0; in front of blocks 1 and 2 two neighbours become one, and the first patch joins
    the last."""

    name = "clips"
    title = "for tests"
    stages = ("encoder",)
    mean = ()  # blocks that run on the mean of the prefix rows

    def plan(self, facts):
        both = tuple(
            tr.Step(
                "encoder", layer=b, joins=2, when="before", amount=1, prefix="mean" if b in type(self).mean else "keep"
            )
            for b in (1, 2)
        )
        return (tr.Step("encoder", layer=0, amount=1), *both)

    def reduce(self, tokens):
        frames = 2**tokens.layer
        assert tokens.layout.frames == frames
        assert tokens.layout.medium == ("video" if tokens.layer else "image")
        batch, n = tokens.features.shape[:2]
        kept = torch.cat([torch.arange(tokens.prefix), torch.arange(tokens.prefix + 1, n)]).expand(batch, -1)
        assign = (torch.arange(n) - (torch.arange(n) >= tokens.prefix).long()).expand(batch, -1).clone()
        assign[:, tokens.prefix] = n - 2
        return Reduction.merge(assign, kept)


class OneOfTwo(Clips, register=False):
    mean = (1,)


class OneOfFour(Clips, register=False):
    mean = (2,)


class OneAlways(Clips, register=False):
    mean = (1, 2)


def by_hand(model, pixels, mean=()):
    """Rows (clips, n, D) that leave each block, and which patch of which frame each is or joined."""
    family = family_of(model)
    x, _ = entering(model, pixels)
    p, fronts = family.facts().tower_prefix, 1
    cells = [[{(b, t)} for t in range(x.shape[1])] for b in range(len(x))]
    states = []

    def merged(x, cells, prefix):
        x = torch.cat([x[:, :prefix], x[:, prefix + 1 : -1], (x[:, prefix : prefix + 1] + x[:, -1:]) / 2], dim=1)
        return x, [own[:prefix] + own[prefix + 1 : -1] + [own[prefix] | own[-1]] for own in cells]

    for i, block in enumerate(family.blocks):
        m = block.module
        if i in (1, 2):
            pairs = [(x[b], x[b + 1]) for b in range(0, len(x), 2)]
            q = p * fronts
            x = torch.stack([torch.cat([a[:q], b[:q], a[q:], b[q:]]) for a, b in pairs])
            cells = [cells[b][:q] + cells[b + 1][:q] + cells[b][q:] + cells[b + 1][q:] for b in range(0, len(cells), 2)]
            fronts *= 2
            if i in mean:
                own, q = x[:, : p * fronts].unflatten(1, (fronts, p)), p * fronts
                x = torch.cat([own.mean(1), x[:, q:]], dim=1)
                cells = [[set().union(*clip[k:q:p]) for k in range(p)] + clip[q:] for clip in cells]
                fronts = 1
            x, cells = merged(x, cells, p * fronts)
        x = x + scale(m, 1, attend(block, norm1(m)(x), None, None))
        if i == 0:
            x, cells = merged(x, cells, p)
        x = x + scale(m, 2, block.mlp(block.norm2(x)))
        states.append((x, cells))
    return states


def apart(state, like):
    """Each row of every frame at full width."""
    x, cells = state
    whole = torch.zeros_like(like)
    for clip, own in zip(x, cells):
        for row, stands in zip(clip, own):
            for frame, place in stands:
                whole[frame, place] = row
    return whole


TOWERS = ("timm", "timm_registers", "siglip_map", "clip", "siglip", "open_clip")


@pytest.mark.parametrize("method", [Clips, OneOfTwo, OneOfFour, OneAlways])
@pytest.mark.parametrize("name", TOWERS)
def test_clips_equal_a_forward_by_hand(name, method):
    model, pixels = tower(name, 8)
    with torch.no_grad():
        states, (like, _) = by_hand(model, pixels, method.mean), entering(model, pixels)
    wide, narrow = apart(states[-1], like), states[-1][0]
    for length, expected in (("full", wide), ("reduced", narrow)):
        with tr.wrapped(model, method(), output_length=length), behind_last_block(model) as seen:
            for grad in (False, False, True):
                with torch.set_grad_enabled(grad):
                    model(pixels)
        same_rows(seen, expected)


@pytest.mark.parametrize("method", [Clips, OneOfTwo])
@torch.no_grad()
def test_states_of_blocks_come_apart_too(method):
    for model, size, read in (
        (timm_model("plain"), 64, lambda m, x: m.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)),
        (transformers_model("clip"), 32, lambda m, x: m(x, output_hidden_states=True).hidden_states[1:]),
    ):
        pixels = torch.randn(8, 3, size, size)
        states, (like, _) = by_hand(model, pixels, method.mean), entering(model, pixels)
        with tr.wrapped(model, method()):
            found = read(model, pixels)
        for rows, state in zip(found, states, strict=True):
            expected = apart(state, like)[:, -rows.shape[1] :]
            torch.testing.assert_close(rows, expected, atol=1e-4 * expected.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize(("method", "fronts"), [(Clips, 4), (OneOfTwo, 2), (OneOfFour, 1)])
@torch.no_grad()
def test_trace_and_report_are_of_videos(method, fronts):
    model = transformers_model("clip")
    pixels = torch.randn(8, 3, 32, 32)
    states = by_hand(model, pixels, method.mean)
    with tr.wrapped(model, method()):
        model(pixels)
        trace, report = tr.trace(model), tr.report(model)
    assert report.tokens_in == [[64], [64]]
    assert report.tokens_kept == [[57], [57]]  # 15 of each frame, 29 of two, 57 of four
    assert report.tokens_at_layer == [[64, 64], [58, 58], [57, 57], [57, 57]]
    assert report.flops > report.flops_unreduced  # attention over four frames takes more than so few patches save
    assert len(trace.images) == 2
    for video, (image, cells) in enumerate(zip(trace.images, states[-1][1])):
        assert (image.layout.frames, image.layout.medium, image.tokens_in) == (4, "video", 64)
        stands = [{(frame - 4 * video) * 16 + place - 1 for frame, place in own} for own in cells[fronts:]]
        assert image.standing_for().tolist() == [next(r for r, own in enumerate(stands) if t in own) for t in range(64)]
        assert all(int(seat) in own for seat, own in zip(image.stages[-1].source, stands))
        assert image.stages[0].assign.max() == 59  # of four frames, 15 each


@torch.no_grad()
def test_videos_of_one_batch_do_not_change_each_other():
    model = timm_model("plain")
    first, second = torch.randn(2, 8, 3, 64, 64)

    with tr.wrapped(model, Clips()):
        together = model.forward_features(torch.cat([first, second]))
        alone = torch.cat([model.forward_features(first), model.forward_features(second)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


class Bright(Clips, register=False):
    """Two frames become one, then patches of a positive first channel stay, of each clip another number."""

    def plan(self, facts):
        later = (tr.Step("encoder", layer=b) for b in (2, 3))
        return (tr.Step("encoder", layer=1, joins=2, when="before"), *later)

    def reduce(self, tokens):
        if tokens.layer != 2:
            assert tokens.prefix == 2 * 5  # of both frames [CLS] and registers, also where counts differ by now
            assert (tokens.cell[:, : tokens.prefix] < 0).all()
            assert (tokens.cell[:, tokens.prefix :] >= 0).all()
            return Reduction.identity(tokens)
        prefix = torch.arange(tokens.num_tokens) < tokens.prefix
        return Reduction.where(prefix | (tokens.features[..., 0] > 0))


@torch.no_grad()
def test_clips_left_with_unlike_numbers_keep_their_prefix_rows():
    model = timm_model("dinov2_reg")
    pixels = torch.randn(8, 3, 56, 56)
    with tr.wrapped(model, Bright()):
        together = model.forward_features(pixels)
        assert len({kept for (kept,) in tr.report(model).tokens_kept}) > 1
        alone = torch.cat([model.forward_features(pixels[i : i + 2]) for i in range(0, 8, 2)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_what_cannot_go_on_as_one_sequence_is_refused():
    model = timm_model("plain")
    with (
        tr.wrapped(model, Clips()),
        torch.no_grad(),
        pytest.raises(ValueError, match="6 frames arrive where 4 neighbours"),
    ):
        model(torch.randn(6, 3, 64, 64))
    model = timm_model("eva02")
    with (
        tr.wrapped(model, Clips()),
        torch.no_grad(),
        pytest.raises(
            ValueError, match=r"is given rope with an entry.*allowed: towers whose positions are in the rows"
        ),
    ):
        model(torch.randn(4, 3, 56, 56))
    with pytest.raises(
        ValueError, match=r"several frames as one sequence, but the vision tower of a llava model encodes each"
    ):
        tr.wrap(reduced.model("llava"), Clips())

    class Late(Clips, register=False):
        def plan(self, facts):
            return (tr.Step("encoder", layer=1, joins=2, amount=1),)

    with pytest.raises(ValueError, match=r"joins=2 with when='middle'; allowed: when='before'"):
        tr.wrap(timm_model("plain"), Late())

    class Alone(Clips, register=False):
        def plan(self, facts):
            return (tr.Step("encoder", layer=1, when="before", prefix="mean", amount=1),)

    with pytest.raises(ValueError, match=r"prefix='mean' of .* joins no frames; allowed: with joins from 2 on"):
        tr.wrap(timm_model("plain"), Alone())
