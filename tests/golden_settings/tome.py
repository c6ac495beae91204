"""ToMe: without a [CLS], with a distillation token, with registers; numbers per block as a list, a pair, or one."""

from __future__ import annotations

import numpy as np
from golden_settings.plain import (
    Case,
    cosine,
    floats,
    joined,
    means,
    membership,
    normal,
    padded,
    single,
    summed,
    vit_state,
)
from golden_settings.plain import vit as run_vit


def match(metric: np.ndarray, r: int, prefix: int) -> tuple[list[int], list[int], dict[str, list]]:
    """Anchors of the output rows, the row of every token, and the places of what merged inside A and B."""
    skipped = prefix if prefix > 2 else 0  # more prefix rows than [CLS] and distillation take no part in the split
    places = list(range(skipped, len(metric)))
    a, b = places[0::2], places[1::2]
    sources = a[1:] if prefix in (1, 2) else a
    targets = b[1:] if prefix == 2 else b
    pairs = {i: max((cosine(metric[i], metric[j]), -j) for j in targets) for i in sources}
    order = sorted(sources, key=lambda i: (-pairs[i][0], i))
    to = {i: -pairs[i][1] for i in order[:r]}
    kept = sorted(a[: len(a) - len(sources)] + order[r:]) if prefix else order[r:]
    anchors = list(range(skipped)) + ([kept[0], b[0], *kept[1:], *b[1:]] if prefix == 2 else [*kept, *b])
    places_of = {
        "unm_idx": [a.index(i) for i in kept],
        "src_idx": [a.index(i) for i in to],
        "dst_idx": [b.index(j) for j in to.values()],
        "score": [pairs[i][0] for i in to],
    }
    return anchors, joined(anchors, to, len(metric)), places_of


def one(n: int, r: int, prefix: int, params: dict, sized: bool = False, seed: int = 0) -> Case:
    metric, x = normal(2, n, 6, seed=seed), normal(2, n, 5, seed=seed + 1)
    effective = min(r, (n - prefix) // 2)
    sizes = np.random.default_rng(seed).integers(1, 5, (2, n)).astype(np.float32) if sized else np.ones((2, n))
    found = [match(m, effective, prefix) for m in metric] if effective else []
    assigns = [assign for _, assign, _ in found] or [list(range(n))] * 2
    expected = single(x, assigns, sizes)
    expected["unmerge"] = np.stack([rows[assign] for rows, assign in zip(expected["x"], assigns)])
    for name in ("unm_idx", "src_idx", "dst_idx", "score") if found else ():
        values = np.array([places[name] for _, _, places in found])
        expected[name] = floats(values) if name == "score" else values
    inputs = {"metric": metric, "x": x} | ({"size": floats(sizes)[..., None]} if sized else {})
    return inputs, {"r_requested": r, "r_effective": effective, **params}, expected


def chain(n: int, rs: list[int], prefix: int, params: dict) -> Case:
    x, size = normal(1, n, 6, seed=3), np.random.default_rng(4).integers(1, 4, (1, n)).astype(np.float32)
    inputs, expected = {"x": x, "size": size[..., None]}, {}
    rows, mass, assign = x[0].astype(np.float64), list(size[0]), list(range(n))
    for step, r in enumerate(rs):
        inputs[f"w{step}"] = normal(6, 4, seed=10 + step)
        metric = rows @ inputs[f"w{step}"].astype(np.float64)
        step_assign = match(metric, r, prefix)[1] if r else list(range(len(rows)))
        rows, mass = means(rows, step_assign, mass), summed(mass, step_assign)
        assign = [step_assign[row] for row in assign]
        expected[f"x{step}"] = floats(rows)[None]
    return inputs, {"r": rs, **params}, expected | {"size": floats(mass)[None, :, None], "assign": np.array([assign])}


VIT = {
    "img_size": 24,
    "patch_size": 4,
    "embed_dim": 16,
    "num_heads": 2,
    "mlp_ratio": 2,
    "num_classes": 0,
    "fc_norm": False,
}


def vit(
    r: object, per_block: list[int], more: dict, prefix: list[str], said: bool = True, proportional: bool = True
) -> Case:
    shape = {**VIT, "depth": len(per_block), **{k: v for k, v in more.items() if k != "distill_token"}}
    state = vit_state(shape, seed=20, distilled="dist_token" in prefix)
    images = normal(2, 3, 24, 24, seed=5)
    p = sum(len(state[name][0]) for name in prefix)
    asked: dict[str, list] = {}

    def merge(block: int, keys: np.ndarray, x: np.ndarray, size: np.ndarray) -> list[int] | None:
        count = min(per_block[block], (len(keys) - p) // 2)
        if not count:
            return None
        _, assign, places = match(keys, count, p)
        asked.setdefault(f"src_idx{block}", []).append(places["src_idx"])
        asked.setdefault(f"dst_idx{block}", []).append(places["dst_idx"])
        return assign

    facts = {"depth": len(per_block), "heads": 2, "patch": 4, "prefix": prefix, "proportional": proportional}
    runs = [run_vit(state, image, merge=merge, **facts) for image in images]
    bare = [run_vit(state, image, merge=lambda *_: None, **facts)[0] for image in images]
    expected = {
        "tokens": floats([x for x, _, _ in runs]),
        "size": floats([size for _, size, _ in runs])[..., None],
        "source": np.stack([membership(assign) for _, _, assign in runs]),
        "base": floats(bare),
        **{name: np.array(rows) for name, rows in asked.items()},
    }
    params = {**shape, **more, "r": r, "prop_attn": proportional} | ({"r_per_block": per_block} if said else {})
    return {"image": images, **{f"sd.{name}": value for name, value in state.items()}}, params, expected


def cases() -> dict[str, Case]:
    none, cls, both = ({"class_token": a, "distill_token": b} for a, b in ((False, False), (True, False), (True, True)))
    bare, token = {"class_token": False, "global_pool": "avg"}, {"class_token": True, "global_pool": "token"}
    registers = {**token, "reg_tokens": 4}
    return {
        "one_nocls": one(23, 7, 0, none),
        "one_sizes": one(24, 7, 1, cls, sized=True),
        "one_distill_capped": one(21, 50, 2, both),
        "one_registers": one(26, 5, 5, {**cls, "num_prefix_tokens": 5}),
        "one_nothing": one(12, 0, 1, cls),
        "chain_nocls": chain(22, [5, 0, 6], 0, none),
        "chain_distill": chain(23, [4, 3], 2, both),
        "schedules": (
            {},
            {"rows": [[4, [3, 2], None], [3, 5], [5, 6, 1.0], [1, 4, -1.0]]},
            {"r": padded([[3, 2, 0, 0], [5, 5, 5], [0, 3, 6, 9, 12], [4]])},
        ),
        "vit_list": vit([6, 0, 5], [6, 0, 5], token, ["cls_token"]),
        "vit_list_of_two": vit([9, 4], [9, 4], token, ["cls_token"], said=False),
        "vit_list_padded": vit([7, 1], [7, 1, 0], bare, [], proportional=False),
        "vit_pair": vit([4, 1], [0, 8], bare, []),
        "vit_pair_alone": vit([4, -1.0], [8, 4, 0], token, ["cls_token"], said=False),
        "vit_number": vit(20, [20, 20], token, ["cls_token"]),
        "vit_nothing": vit([0, 0], [0, 0], token, ["cls_token"]),
        "vit_registers": vit([5, 6], [5, 6], registers, ["cls_token", "reg_token"]),
        "vit_distill": vit([5, 6], [5, 6], {**token, "distill_token": True}, ["cls_token", "dist_token"]),
    }
