"""HoliTom: segmentation, clustering, the outer part with and without row newlines, the fold inside the language model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from golden_cases.common import FACTS, query_and_key, with_cls_key
from torch import Tensor

from tokenreduce.adapters.hooks.sequence_packing import Packing, carried, repacked, write
from tokenreduce.groups import Image, group_images
from tokenreduce.kernels.attention_row import attention_row
from tokenreduce.kernels.density_peaks import density_peaks
from tokenreduce.kernels.group_mean import group_mean
from tokenreduce.kernels.rows import take_rows
from tokenreduce.kernels.temporal_segmentation import temporal_segmentation
from tokenreduce.kernels.temporal_similarity import temporal_similarity
from tokenreduce.layout import Layout
from tokenreduce.method import Step
from tokenreduce.methods.holitom import HoliTom
from tokenreduce.reduction import Reduction
from tokenreduce.temporal_redundancy import corrected, stands
from tokenreduce.tokens import VisualTokens


def run(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    if "sim" in inputs:
        return segmentation(inputs, params)
    if "x" in inputs:
        return clusters(inputs["x"], params)
    if "hidden" in inputs:
        return inner(inputs["hidden"], inputs["attn_last_row"], params)
    if "newline" in inputs:
        return with_newlines(inputs, params)
    return outer(inputs["feat"], inputs["attn"], params)


def segmentation(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    x, method = inputs["feat"], HoliTom(tau=params["tau"], max_window=params["max_window"])
    similarity = temporal_similarity(x)
    torch.testing.assert_close(similarity, inputs["sim"], rtol=0, atol=1e-5)
    still = similarity > method.tau
    segments, saved = temporal_segmentation(still, method.max_window)
    masks = [stands(still, start, stop) for start, stop in segments]
    means = [x[start:stop].mean(dim=0) * mask[:, None] for (start, stop), mask in zip(segments, masks)]
    return {
        "segments": inclusive(segments),
        "static_mask": torch.stack(masks),
        "static_mean": torch.stack(means),
        "total_reduced": torch.tensor(saved),
    }


def clusters(x: Tensor, params: dict[str, Any]) -> dict[str, Tensor]:
    """Every place of one frame stands still: the whole frame is clustered."""
    m, n = params["clusters"], x.shape[1]
    method = HoliTom(
        neighbours=params["k_requested"], beta=params["beta"], plain_mean=params["plain_mean"], reference_k=True
    )
    centre, score, _ = density_peaks(x, m, params["k"])
    merged = []
    for one in x:
        still = torch.ones(n, dtype=torch.bool)
        assign, source, weight = method._segment(one[None], torch.zeros(1, n), still, [m, 0])
        assert torch.equal(source, centre[len(merged)])
        merged.append(group_mean(one[None], assign[None], m, weight[None])[0])
    best = score.sort(dim=1, descending=True, stable=True).indices[:, :m]
    return {"centers": centre, "centers_by_score": best, "merged": torch.stack(merged)}


def released(params: dict[str, Any], **more: Any) -> HoliTom:
    names = ("tau", "beta", "max_window")
    given = {name: params[name] for name in names}
    return HoliTom(keep=params["retain_ratio"], neighbours=params["k"], exact=False, reference_k=True, **given, **more)


def show(method: HoliTom, x: Tensor, score: Tensor, side: int) -> tuple[VisualTokens, Reduction]:
    """One video ``x`` (T, N, D)."""
    step = method.plan(FACTS)[0]
    tokens = VisualTokens(
        features=x.flatten(0, 1)[None],
        layout=Layout(side, x.shape[1] // side, frames=len(x)),
        stage=step.stage,
        signals={step.needs[0]: score.reshape(1, -1)},
    )
    return tokens, method.reduce(tokens).check(tokens)


def outer(x: Tensor, score: Tensor, params: dict[str, Any]) -> dict[str, Tensor]:
    method, n = released(params, output_order="reference"), x.shape[1]
    tokens, plan = show(method, x, score, 1)
    still = temporal_similarity(x) > method.tau
    segments, _ = temporal_segmentation(still, method.max_window)
    spans = [(stop - start, int(stands(still, start, stop).sum())) for start, stop in segments]
    frame = plan.source[0] // n
    lengths = [int(((frame >= start) & (frame < stop)).sum()) for start, stop in segments]
    return {
        "tokens": plan.carry(tokens.features)[0],
        "segments": inclusive(segments),
        "segment_lengths": torch.tensor(lengths),
        "retain_ratio": torch.tensor(corrected(spans, n, method.budget)[2]),
    }


def with_newlines(inputs: dict[str, Tensor], params: dict[str, Any]) -> dict[str, Tensor]:
    """Pooling and row newlines are the model's: one newline after each grid row that still holds a token."""
    side, stride = params["side"], params["pool_stride"]
    small = side // stride

    def pooled(values: Tensor) -> Tensor:
        grid = values.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        return F.avg_pool2d(grid, stride).permute(0, 2, 3, 1).flatten(1, 2)

    x, score = pooled(inputs["feat"]), pooled(inputs["attn"][..., None])[..., 0]
    method = released(params)
    tokens, plan = show(method, x, score, small)
    rows = plan.source[0] // small  # grid rows of all frames, counted through
    sequence = []
    for row in rows.unique().tolist():
        sequence += [plan.carry(tokens.features)[0, rows == row], inputs["newline"][None]]
    segments, _ = temporal_segmentation(temporal_similarity(x) > method.tau, method.max_window)
    return {"sequence": torch.cat(sequence), "pooled": x, "segments": inclusive(segments)}


def inner(hidden: Tensor, last_row: Tensor, params: dict[str, Any]) -> dict[str, Tensor]:
    """A sequence (L, D) on its way into layer K, its visual tokens in one piece."""
    length, n = len(hidden), params["visual_tokens"]
    span = torch.arange(n) + params["start"]
    method = HoliTom(layer=params["layer"], inner_keep=1 - params["drop_ratio"])
    (step,) = [step for step in method.plan(FACTS) if step.stage == "llm"]
    assert step == Step("llm", layer=params["layer"], needs=step.needs)
    query, key = query_and_key(with_cls_key(last_row[None, :, :-1])[..., None, :].roll(-1, dims=-1))
    score = attention_row(query, key, 1.0)[:, 0]
    layout = Layout(1, n // 2, frames=2)
    (group,) = before = group_images([Image(0, span, layout)], span.device)
    group.features = hidden[None, span]
    tokens = VisualTokens(group.features, layout, "llm", step.layer, signals={step.needs[0]: score[:, span]})
    plan = method.reduce(tokens).check(tokens)

    after = group.apply(plan, "llm", step.layer, method.name)
    everything = Packing.untouched(torch.ones(1, length, dtype=torch.bool), [length])
    packing = repacked(everything, before, after)
    kept = plan.source[0] + params["start"]
    source = torch.ones(n, dtype=torch.bool).scatter(0, plan.source[0], False).nonzero().flatten()
    return {
        "hidden": write(take_rows(hidden[None], packing.order), packing, after, "features")[0],
        "position_ids": carried(packing, after)[0],
        "merge_source": source + params["start"],
        "merge_target": kept[plan.assign[0, source]],
    }


def inclusive(segments: list[tuple[int, int]]) -> Tensor:
    return torch.tensor([(start, stop - 1) for start, stop in segments])
