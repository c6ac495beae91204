"""PiToMe: without a [CLS], with registers, shares below a half; towers of any depth, margin and order of matchings."""

from __future__ import annotations

import math

import numpy as np
from golden_settings.plain import (
    Case,
    best,
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
from golden_settings.tome import VIT
from golden_settings.tome import match as match_bsm


def energies(metric: np.ndarray, margin: float, alpha: float, gaussian: bool = False) -> list[float]:
    def f(w: float) -> float:
        if gaussian:
            sigma = 1 - margin
            return math.exp(-(((1 - w) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))
        return w - margin if w > margin else alpha * (math.exp(w - margin) - 1)

    return [sum(f(cosine(a, b)) for b in metric) / len(metric) for a in metric]


def removed(n: int, share: float, cls: int, variant: str) -> int:
    total = n + cls if variant == "bsm" else n
    return min(math.floor(total - total * share), n // 2)


def match(
    metric: np.ndarray, r: int, margin: float, alpha: float, prefix: int, variant: str
) -> tuple[list[int], list[int], dict[str, list]]:
    """Rows merged into their anchors, the row of every token, and what vectors say of the way there."""
    if variant == "bsm":
        anchors, assign, places = match_bsm(metric, r, prefix)
        return anchors, assign, {name: places[name] for name in ("unm_idx", "src_idx", "dst_idx")}
    patches = metric[prefix:]
    energy = energies(patches, margin, alpha, variant == "text")
    order = best(energy, len(energy))
    if variant == "pitome_bsm":
        a, b, alone = order[0::2], order[1::2], []
    elif variant == "text":
        a, b, alone = order[:r], order[r : 2 * r], order[2 * r :]
    else:
        a, b, alone = order[0 : 2 * r : 2], order[1 : 2 * r : 2], order[2 * r :]
    nearest = {i: max((cosine(patches[i], patches[j]), -k) for k, j in enumerate(b)) for i in a}
    leaving = a if variant != "pitome_bsm" else [a[k] for k in best([nearest[i][0] for i in a], len(a))]
    kept, leaving = leaving[r:], leaving[:r]
    to = {i + prefix: b[-nearest[i][1]] + prefix for i in leaving}
    anchors = [*range(prefix), *(i + prefix for i in (alone or kept)), *(j + prefix for j in b)]
    said = {"a_idx": a, "b_idx": b, "dst_idx": [-nearest[i][1] for i in leaving], "energy": energy, "order": order}
    if variant == "pitome_bsm":
        said |= {"src_idx": [a.index(i) for i in leaving], "unm_idx": [a.index(i) for i in kept]}
    else:
        said["protected_idx"] = alone
    return anchors, joined(anchors, to, len(metric)), said


def one(n: int, share: float, variant: str, prefix: int, more: dict, margin: float = 0.4, alpha: float = 1.0) -> Case:
    metric, x = normal(2, n, 6, seed=n), normal(2, n, 5, seed=n + 1)
    sizes = np.random.default_rng(n).integers(1, 5, (2, n)).astype(np.float32)
    r = removed(n - prefix, share, min(prefix, 1), variant)
    found = [match(m, r, margin, alpha, prefix, variant) for m in metric] if r else []
    assigns = [assign for _, assign, _ in found] or [list(range(n))] * 2
    expected = single(x, assigns, sizes)
    for name in found[0][2] if found else ():
        values = np.array([said[name] for _, _, said in found])
        expected[name] = floats(values) if name == "energy" else values.astype(int)
    if variant == "pitome" and r:
        expected["x_prune"] = np.stack([rows[anchors] for rows, (anchors, _, _) in zip(x, found)])
    params = {"variant": variant, "ratio": share, "margin": margin, "alpha": alpha, "r": r, **more}
    return {"metric": metric, "x": x, "size": sizes[..., None]}, params, expected


def tower(depth: int, bsm: int, share: float, cls: bool, m0: float, fall: float, weighted: bool) -> Case:
    x, w = normal(2, 30, 6, seed=8), normal(depth, 6, 6, seed=9)
    states, sizes, lengths = [[row.astype(np.float64) for row in x]], np.ones((2, 30)).tolist(), [30]
    for layer in range(depth):
        rows, variant = [], "bsm" if layer < bsm else "pitome"
        for i, h in enumerate(states[-1]):
            h = h + 0.5 * np.tanh(h @ w[layer].astype(np.float64))
            r = removed(len(h) - cls, share, int(cls), variant)
            if r:
                _, assign, _ = match(h, r, m0 - fall * layer / depth, 1.0, int(cls), variant)
                h = means(h, assign, sizes[i] if weighted else [1.0] * len(h))
                sizes[i] = summed(sizes[i], assign)
            rows.append(h)
        states.append(rows)
        lengths.append(len(rows[0]))
    params = {
        "layers": depth,
        "ratio": share,
        "class_token": cls,
        "layer": "h + 0.5*tanh(h @ w[i])",
        "bsm_while": f"layer index < {bsm}" if bsm else "never",
        "margin": f"{m0} - {fall}*i/layers",
        "merge": f"{'weighted' if weighted else 'plain'} mean, whole layer output is metric and payload",
    }
    expected = {
        "hidden_m2": floats(states[-2]),
        "hidden_last": floats(states[-1]),
        "tokens": np.array(lengths),
        "margin": floats([m0 - fall * layer / depth for layer in range(depth)]),
    }
    return {"x": x, "w": w}, params, expected


def vit(
    shares: list[float],
    variants: list[str],
    m0: float,
    fall: float,
    more: dict,
    prefix: list[str],
    shape: dict,
    **how: bool,
) -> Case:
    depth = len(shares)
    state = vit_state({**VIT, "depth": depth, **shape}, seed=40)
    images = normal(2, 3, 24, 24, seed=6)
    p = sum(len(state[name][0]) for name in prefix)
    features = how.pop("features", False)
    found: dict[str, list] = {}

    def merge(block: int, keys: np.ndarray, x: np.ndarray, size: np.ndarray) -> list[int] | None:
        metric, margin = x if features else keys, m0 - fall * block / depth
        r = removed(len(metric) - p, shares[block], min(p, 1), variants[block])
        if shares[block] == 1:
            return None
        found.setdefault(f"energy{block}", []).append(energies(metric[p:], margin, 1.0))
        return match(metric, r, margin, 1.0, p, variants[block])[1] if r else list(range(len(metric)))

    runs = [run_vit(state, i, depth=depth, heads=2, patch=4, prefix=prefix, merge=merge, **how) for i in images]
    expected = {
        "tokens": floats([x for x, _, _ in runs]),
        "size": floats([size for _, size, _ in runs])[..., None],
        "source": np.stack([membership(assign) for _, _, assign in runs]),
        **{name: floats(rows) for name, rows in found.items()},
    }
    inputs = {"image": images, **{f"sd.{name}": value for name, value in state.items()}}
    return inputs, {**VIT, "depth": depth, **shape, **more}, expected


def lengths(depth: int, tokens: int, share: float, cls: bool, variant: str) -> list[int]:
    n, found = tokens - cls, []
    for _ in range(depth):
        n -= removed(n, share, int(cls), variant)
        found.append(n + cls)
    return found


def cases() -> dict[str, Case]:
    none, cls, registers = {"class_token": False}, {"class_token": True}, {"class_token": True, "num_prefix_tokens": 4}
    bare, token = {"class_token": False, "global_pool": "avg"}, {"class_token": True, "global_pool": "token"}
    rows = [[3, 20, 0.8, False], [5, 41, 0.6, True]]
    plain = {"proportional": False}
    mae, e, b = [False, False, True, True], "pitome", "pitome_bsm"
    return {
        "one_nocls": one(30, 0.8, "pitome", 0, none, alpha=0.7),
        "one_registers": one(31, 0.7, "pitome", 4, registers),
        "one_half_at_most": one(21, 0.3, "pitome", 1, cls),
        "one_everything_kept": one(21, 1.0, "pitome", 1, cls),
        "one_energy_bsm_nocls": one(27, 0.8, "pitome_bsm", 0, none),
        "one_bsm_nocls": one(28, 0.8, "bsm", 0, none),
        "one_bsm_registers": one(29, 0.8, "bsm", 4, registers),
        "one_text_nocls": one(22, 0.7, "text", 0, none, margin=0.6),
        "schedule": (
            {},
            {"rows": rows},
            {
                "tokens_energy": padded([lengths(*row, "pitome") for row in rows]),
                "tokens_bsm": padded([lengths(*row, "bsm") for row in rows]),
            },
        ),
        "tower": tower(5, 2, 0.85, True, 0.7, 0.5, False),
        "tower_nocls_weighted": tower(4, 1, 0.8, False, 0.9, 0.9, True),
        "tower_without_bsm": tower(3, 0, 0.8, True, 0.5, 0.1, False),
        "vit_mae": vit(
            [0.85] * 4,
            [e, e, b, b],
            0.75,
            0.75,
            {"ratio": 0.85, "margins": [0.75, 0.5625, 0.375, 0.1875], "use_bsm_pitome": mae, "prop_attn": False},
            ["cls_token"],
            token,
            **plain,
        ),
        "vit_blip2": vit(
            [0.8] * 2,
            [e, e],
            0.75,
            0.4,
            {"ratio": 0.8, "margins": [0.75, 0.55], "use_bsm_pitome": [False, False], "prop_attn": True},
            [],
            bare,
            proportional=True,
        ),
        "vit_preset_features": vit(
            [0.8] * 3, [e] * 3, 0.9, 0.9, {"ratio": 0.8, "preset": "blip"}, ["cls_token"], token, features=True, **plain
        ),
        "vit_shares_per_block": vit(
            [0.7, 1.0, 0.8],
            [b, b, e],
            0.75,
            0.75,
            {"ratio": [0.7, 1.0, 0.8], "prop_attn": False},
            ["cls_token", "reg_token"],
            {**token, "reg_tokens": 2},
            **plain,
        ),
        "vit_after_the_block": vit(
            [0.8] * 2,
            [e, e],
            0.9,
            0.9,
            {"ratio": 0.8, "preset": "keys", "when": "after", "size_weighted": False},
            ["cls_token"],
            token,
            proportional=True,
            weighted=False,
            after=True,
        ),
    }
