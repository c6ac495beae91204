"""Signals on every family equal what eager attention maps say, pooled as the model pools its features, in raster order."""

from __future__ import annotations

from contextlib import ExitStack
from unittest import mock

import pytest
import reduced
import torch
import torch.nn.functional as F
from eager_maps import TOLERANCE, anyres, maps, shown, spy
from transformers.modeling_utils import AttentionInterface

import tokenreduce as tr
from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks import tower_listener
from tokenreduce.adapters.registry import family_of
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor.shortened import decoder_of
from tokenreduce.eval.tiny_models.llava import best_tiles
from tokenreduce.signals import AttentionReceived, ClsAttention, Keys, LastQueryAttention, TextAttention

CLS = ("clip_vision_model", "internvl_vision")
EACH = ("smolvlm", "idefics3", "aya_vision")  # each tile is an image of its own
ANYRES = ("llava_next", "llava_next_video", "llava_onevision")


def raster(key: str, case: zoo.Case, values: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Per picture of the trace (N,), from values per row of the tower (R, P) of all images and all videos."""
    found, at = [], dict.fromkeys(values, 0)
    sizes = iter(case.inputs.get("image_sizes", torch.empty(0, 2, dtype=torch.long)).tolist())
    for own in case.visuals:
        images = sum(visual.modality == "image" for visual in own)
        for visual in own:
            medium = visual.modality if visual.modality in values else "image"
            n = len(visual.columns)
            s = int(values[medium].shape[1] ** 0.5)
            size = next(sizes) if key in ANYRES and medium == "image" else None
            if size is not None:
                r = 1 + best_tiles(size)[0] * best_tiles(size)[1] if key != "llava_onevision" or images == 1 else 1
            elif medium == "video":
                r = case.inputs["pixel_values_videos"].shape[1]
            else:
                r = n // zoo.tiles.PER_TILE
            rows = values[medium][at[medium] : at[medium] + r]
            at[medium] += r
            if size is not None:
                found.append(anyres(rows, size, s) if r > 1 else rows[0])
                continue
            grids = rows.view(r, 1, s, s)
            if key == "llava_onevision":
                grids = F.interpolate(grids, size=-(-s // 2), mode="bilinear")
            elif key in (*EACH, "internvl", "gemma3", "llava_next_video"):
                grids = F.avg_pool2d(grids, 2)
            if key in EACH or (key == "internvl" and visual.modality == "video"):
                found += list(grids.flatten(1))  # tiles and frames are images of their own
            else:
                found.append(grids.flatten())
    assert all(at[medium] == len(rows) for medium, rows in values.items())
    return found


def packed(key: str, case: zoo.Case, values: torch.Tensor, *, of_queries: bool = False) -> list[torch.Tensor]:
    """Per picture of the trace (N,), from values per row of a packed tower (P,); ``of_queries``: sums over a frame's."""
    grids = {m: case.inputs.get(f"{m}_grid_thw", torch.empty(0, 3, dtype=torch.long)) for m in ("image", "video")}
    queues = {}
    first = 0
    for medium, grid in grids.items():
        own = values[first : first + int(grid.prod(1).sum())]
        first += len(own)
        units = own.view(-1, 4).mean(dim=1)
        if key == "qwen2_5_vl" and len(grid):
            units = units[torch.tensor(windows(grid.tolist())).argsort()]
        frames = [int(h * w) for _, h, w in grid]
        sizes = (grid.prod(1) // 4).tolist()
        queues[medium] = iter([x / n if of_queries else x for x, n in zip(units.split(sizes), frames)])
    return [next(queues[visual.modality]) for own in case.visuals for visual in own]


def windows(grids: list[list[int]], w: int = 2) -> list[int]:
    """Units of all pictures in the order of windows of w x w units, frame by frame."""
    order, first = [], 0
    for frames, rows, columns in grids:
        height, width = rows // 2, columns // 2
        for _ in range(frames):
            for top in range(0, height, w):
                for left in range(0, width, w):
                    inside = [(y, x) for y in range(top, top + w) for x in range(left, left + w)]
                    order += [first + y * width + x for y, x in inside if y < height and x < width]
            first += height * width
    return order


CASES = [(key, kind) for key in reduced.FAMILIES for kind in ("mixed", "videos", "video") if kind in zoo.kinds(key)]


@pytest.mark.parametrize(("key", "kind"), CASES)
def test_signals_of_the_tower(key, kind):
    model, eager = reduced.model(key), reduced.model(key, "eager")
    case = zoo.case(key, kind, model)
    family = family_of(eager)
    cls = model.config.vision_config.model_type in CLS
    for block in (1, family.facts().feature_block):
        needs = (AttentionReceived(block), *([ClsAttention(block), ClsAttention(block, "max")] if cls else []))
        found, _ = shown(model, case.inputs, needs)
        modules = [family.tower_attention(block, t) for t in range(len(family.towers))]
        heard = [call for calls in maps(eager, case.inputs, modules) for call in calls]
        for signal in needs:
            if key.startswith("qwen"):
                received = torch.cat([chunk[0].sum(dim=1).mean(dim=0) for chunk in heard])  # queries, heads
                expected = packed(key, case, received, of_queries=True)
            else:
                values = [statistic(signal, call)[:, cls:] for call in heard]
                expected = raster(key, case, dict(zip(media(key, kind), values, strict=False)))
            assert len(found) == len(expected)
            for own, want in zip(found, expected):
                torch.testing.assert_close(own[signal], want, atol=TOLERANCE, rtol=0)


def media(key: str, kind: str) -> tuple[str, ...]:
    """What the passes of the towers encode, in order."""
    return ("video",) if key in (*ANYRES, "video_llava") and kind == "video" else ("image", "video")


@pytest.mark.parametrize(("key", "kind"), CASES)
def test_keys_of_the_tower(key, kind):
    model = reduced.model(key)
    case, family = zoo.case(key, kind, model), family_of(model)
    prefix, heads = family.facts().tower_prefix, family.block(1).heads
    rows: list[torch.Tensor] = []

    def heard(module, args, output):
        rows.append(output.chunk(3, dim=-1)[1] if hasattr(attention, "qkv") else output)

    with ExitStack() as stack:
        for t in range(len(family.towers)):
            attention = family.tower_attention(1, t)
            names = dict(attention.named_modules())
            module = next(names[name] for name in ("qkv", "k_proj", "attention.key") if name in names)
            stack.callback(module.register_forward_hook(heard).remove)
        with torch.no_grad():
            model(**case.inputs)
    joined, mean = Keys(1, "joined"), Keys(1)
    found, _ = shown(model, case.inputs, (joined, mean))
    for channel in (0, 5, -1):
        values = [x[..., channel] for x in rows]
        if key.startswith("qwen"):
            expected = packed(key, case, torch.cat(values))
        else:
            expected = raster(key, case, dict(zip(media(key, kind), [x[:, prefix:] for x in values], strict=False)))
        for own, want in zip(found, expected, strict=True):
            torch.testing.assert_close(own[joined][:, channel], want, atol=TOLERANCE, rtol=1e-5)
    for own in found:
        torch.testing.assert_close(own[mean], own[joined].unflatten(1, (heads, -1)).mean(dim=1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("key", "kind"), CASES)
def test_channels_go_the_way_of_each_by_itself(key, kind):
    model, original, compared = reduced.model(key), Family.rows_per_picture, []

    def watched(family, call, values, pictures, block):
        channels = [values, values.square(), 1 - values]
        found = original(family, call, torch.stack(channels, dim=-1), pictures, block)
        for i, x in enumerate(channels):
            for own, want in zip(found, family.per_picture(call, x, pictures, block), strict=True):
                torch.testing.assert_close(own[:, i], want)
                compared.append(want)
        return [own[:, 0] for own in found]

    with mock.patch.object(Family, "rows_per_picture", watched):
        shown(model, zoo.inputs(key, kind, model), (AttentionReceived(1),))
    assert compared


def block_diagonal(module, query, key, value, attention_mask, cu_seq_lens_q, scaling, **kwargs):
    """Attention of a packed sequence in one call, as flash attention is called."""
    calls.append(len(cu_seq_lens_q) - 1)
    segment = torch.searchsorted(cu_seq_lens_q, torch.arange(query.shape[2], dtype=torch.int32), right=True)
    own = segment[:, None] == segment
    return F.scaled_dot_product_attention(query, key, value, own, scale=scaling).transpose(1, 2), None


calls: list[int] = []


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("key", [key for key in reduced.FAMILIES if key.startswith("qwen")])
def test_a_packed_tower_in_one_call_equals_one_call_per_segment(key, block):
    """Both reach the operation as one packed sequence."""
    signal = AttentionReceived(block)
    model = zoo.build(key)
    inputs = zoo.inputs(key, "mixed", model)
    together, received = [], tower_listener.attention_received

    def watched(query, key, scale, **kwargs):
        together.append(kwargs["cuts"].tolist())
        return received(query, key, scale, **kwargs)

    with mock.patch.object(tower_listener, "attention_received", watched):
        expected, _ = shown(model, inputs, (signal,))
        AttentionInterface.register("flash_standin", block_diagonal)
        family = family_of(model)
        for i in range(len(family.layers())):
            config = family.tower_attention(i).config
            config._attn_implementation_internal = "flash_standin"
        calls.clear()
        found, _ = shown(model, inputs, (signal,))
    assert len(together) == 2
    assert together[0] == together[1]
    assert calls[block] == len(together[0]) - 1 > 1
    for own, want in zip(found, expected, strict=True):
        torch.testing.assert_close(own[signal], want[signal], atol=TOLERANCE, rtol=0)


def test_segments_of_a_pass_that_failed_are_forgotten():
    model = zoo.build("qwen2_5_vl")
    inputs = zoo.inputs("qwen2_5_vl", "mixed", model)
    attention = family_of(model).tower_attention(0)
    method, _ = spy((AttentionReceived(0),))
    with tr.wrapped(model, method), torch.no_grad():
        expected = model(**inputs).logits
        with mock.patch.object(attention.proj, "forward", side_effect=RuntimeError("out of memory")):
            for _ in range(2):
                with pytest.raises(RuntimeError, match="out of memory"):
                    model(**inputs)
        assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize("key", ["qwen2_vl", "gemma3"])
def test_a_tower_without_cls_is_not_asked_for_its_attention(key):
    with pytest.raises(ValueError, match=r"has no \[CLS\] token; ask for AttentionReceived\(1\)"):
        tr.wrap(zoo.build(key), spy((ClsAttention(1),))[0])


def statistic(signal, weights: torch.Tensor) -> torch.Tensor:
    if isinstance(signal, AttentionReceived):
        return weights.mean(dim=(1, 2))
    return weights[:, :, 0].amax(1) if signal.heads == "max" else weights[:, :, 0].mean(1)


@pytest.mark.parametrize("key", ["smolvlm", "idefics3"])
def test_patches_of_padding_neither_ask_nor_answer(key):
    model, eager = reduced.model(key), reduced.model(key, "eager")
    case = zoo.case(key, "single", model)
    mask = case.inputs["pixel_attention_mask"]
    mask[0, 0, 24:] = 0
    mask[0, 1, :, 20:] = 0
    signal = AttentionReceived(2)
    found, _ = shown(model, case.inputs, (signal,))
    ((weights,),) = maps(eager, case.inputs, [family_of(eager).tower_attention(2)])
    real = mask[0].float().unflatten(1, (8, 4)).unflatten(3, (8, 4)).amax(dim=(2, 4)).flatten(1).bool()
    for own, attention, asks in zip(found, weights, real, strict=True):
        received = attention[:, asks].mean(dim=(0, 1)).view(1, 8, 8)
        torch.testing.assert_close(own[signal], F.avg_pool2d(received, 2).flatten(), atol=TOLERANCE, rtol=0)
    assert float(found[0][signal][-1]) == 0


@pytest.mark.parametrize("kind", ["mixed", "right"])
@pytest.mark.parametrize("key", reduced.FAMILIES)
def test_signals_of_the_decoder(key, kind):
    """Two-way families included: what a token receives counts the queries before it that see it."""
    model, eager = reduced.model(key), reduced.model(key, "eager")
    inputs = zoo.inputs(key, kind, model)
    for layer in (1, 2):
        last, received = LastQueryAttention(layer), AttentionReceived(layer, "llm")
        sums, peaks = TextAttention(layer, "sum"), TextAttention(layer, "max")
        found, trace = shown(model, inputs, (last, received, sums, peaks))
        ((weights,),) = maps(eager, inputs, [decoder_of(eager).layers[layer].self_attn])
        for image, own in zip(trace.images, found, strict=True):
            real = inputs["attention_mask"][image.sample].bool()
            attention = weights[image.sample][:, :, image.columns]
            text = attention[:, real & ~trace.visual[image.sample]].mean(0)
            for signal, want in {
                last: attention[:, int(real.nonzero()[-1])].mean(0),
                received: attention[:, real].mean(dim=(0, 1)),
                sums: text.sum(0),
                peaks: text.amax(0),
            }.items():
                torch.testing.assert_close(own[signal], want, atol=TOLERANCE, rtol=0)
