"""HoliTom: any pooling or none, any place of newlines or none, other clusters, an odd number of tokens to fold."""

from __future__ import annotations

import math

import numpy as np
from golden_settings.plain import Case, attention_maps, best, cosine, floats, normal

TAU = 0.8


def footage(frames: int, n: int, channels: int, seed: int) -> np.ndarray:
    """Frames of which about half the places change, and two cuts."""
    rng, x = np.random.default_rng(seed), [normal(n, channels, seed=seed)]
    for t in range(1, frames):
        new = normal(n, channels, seed=seed + t)
        changes = rng.random(n) < (1.0 if t in (frames // 3, frames // 2) else 0.3)
        x.append(np.where(changes[:, None], new, x[-1] + 0.05 * new))
    return np.stack(x).astype(np.float32)


def still_places(x: np.ndarray) -> list[list[bool]]:
    return [[cosine(a, b) > TAU for a, b in zip(x[t], x[t + 1])] for t in range(len(x) - 1)]


def stands(still: list[list[bool]], first: int, last: int) -> list[int]:
    return [j for j in range(len(still[0])) if last > first and all(row[j] for row in still[first:last])]


def cut(still: list[list[bool]], frames: int, longest: int) -> list[tuple[int, int]]:
    """Section 'outer part', steps 2 and 3: first and last frame of each segment."""
    saved, length = [0], [0]
    for i in range(1, frames + 1):
        most, chosen = saved[i - 1], 1
        for w in range(2, min(i, longest) + 1):
            gain = saved[i - w] + (w - 1) * len(stands(still, i - w, i - 1))
            if gain > most:
                most, chosen = gain, w
        saved.append(most)
        length.append(chosen)
    segments, end = [], frames
    while end:
        segments.append((end - length[end], end - 1))
        end -= length[end]
    return segments[::-1]


def peaks(y: np.ndarray, m: int, k: int) -> tuple[list[int], list[int], list[int]]:
    """Centres by score, centres ascending, and the cluster of every token."""
    y = y.astype(np.float64)
    d = np.sqrt(((y[:, None] - y[None]) ** 2).sum(-1) / y.shape[1])
    density = [-(np.sort(row)[:k] ** 2).mean() for row in d]
    rank = {i: place for place, i in enumerate(best(density, len(y)))}
    delta = [min((d[i, j] for j in range(len(y)) if rank[j] < rank[i]), default=d.max()) for i in range(len(y))]
    score = [p + math.log(max(q, 1e-300)) for p, q in zip(density, delta)]
    by_score = best(score, m)
    centres = sorted(by_score)
    of = [centres.index(i) if i in centres else int(np.argmin([d[i, c] for c in centres])) for i in range(len(y))]
    return by_score, centres, of


def clustered(y: np.ndarray, m: int, k: int, beta: float, plain: bool) -> tuple[list[int], list[int], np.ndarray]:
    by_score, centres, of = peaks(y, m, k)
    rows = []
    for row, c in enumerate(centres):
        members = [i for i, r in enumerate(of) if r == row and i != c]
        if plain:
            rows.append(y[[c, *members]].mean(axis=0))
        else:
            rows.append(beta * y[c] + (1 - beta) * y[members].mean(axis=0) if members else y[c])
    return by_score, centres, np.stack(rows)


def clusters(n: int, m: int, k: int, requested: int, beta: float, plain: bool) -> Case:
    x = normal(2, n, 6, seed=n)
    found = [clustered(one, m, k, beta, plain) for one in x]
    expected = {
        "centers": np.array([c for _, c, _ in found]),
        "centers_by_score": np.array([c for c, _, _ in found]),
        "merged": floats([rows for _, _, rows in found]),
    }
    params = {"clusters": m, "k": k, "k_requested": requested, "beta": beta, "plain_mean": plain}
    return {"x": x}, params, expected


def segmentation(frames: int, n: int, longest: int) -> Case:
    x = footage(frames, n, 6, seed=2)
    still = still_places(x)
    segments = cut(still, frames, longest)
    masks = [[j in stands(still, a, b) for j in range(n)] for a, b in segments]
    expected = {
        "segments": np.array(segments),
        "static_mask": np.array(masks),
        "static_mean": floats(
            [x[a : b + 1].mean(0) * np.array(mask)[:, None] for (a, b), mask in zip(segments, masks)]
        ),
        "total_reduced": np.array(sum((b - a) * sum(mask) for (a, b), mask in zip(segments, masks))),
    }
    return {"feat": x}, {"tau": TAU, "max_window": longest}, expected


def pool(grid: np.ndarray, kind: str | None, stride: int) -> np.ndarray:
    """(S, S, C) pooled; bilinear as the pixel centres of the smaller grid fall, at the borders clamped."""
    if kind is None:
        return grid
    side = len(grid)
    if kind == "bilinear":
        small = math.ceil(side / stride)
        at = [min(max((i + 0.5) * side / small - 0.5, 0), side - 1) for i in range(small)]

        def along(x: np.ndarray) -> np.ndarray:
            low = [math.floor(p) for p in at]
            return np.stack([x[i] * (1 - (p - i)) + x[min(i + 1, side - 1)] * (p - i) for p, i in zip(at, low)])

        return along(along(grid.astype(np.float64)).swapaxes(0, 1)).swapaxes(0, 1)
    small, reduce = side // stride, {"average": np.mean, "max": np.max}[kind]
    blocks = [
        grid[stride * i : stride * (i + 1)][:, stride * j : stride * (j + 1)]
        for i in range(small)
        for j in range(small)
    ]
    return np.stack([reduce(block, axis=(0, 1)) for block in blocks]).reshape(small, small, -1)


def video(frames: int, side: int, share: float, kind: str | None, newline: str, told: bool, more: dict) -> Case:
    raw, scores = footage(frames, side * side, 6, seed=frames), np.abs(normal(frames, side * side, seed=7))
    stride = 2 if kind else 1
    x = np.stack([pool(frame.reshape(side, side, -1), kind, stride) for frame in raw])
    a = np.stack([pool(frame.reshape(side, side, 1), kind, stride) for frame in scores]).reshape(frames, -1)
    width = x.shape[2]
    x = x.reshape(frames, width * width, -1)
    n, k, beta, plain = x.shape[1], 3, more.get("beta", 0.6), more.get("plain_mean", False)
    still = still_places(x)
    segments = cut(still, frames, 6)
    saved = sum((b - first) * len(stands(still, first, b)) for first, b in segments)
    ratio = min(share * frames * n / (frames * n - saved), 1.0)
    rows: list[tuple[int, np.ndarray]] = []  # cell, counted through all frames, and features
    lengths = []
    for first, last in segments:
        static = stands(still, first, last)
        m, part = round(len(static) * ratio), []
        if m:
            _, centres, merged = clustered(x[first : last + 1, static].mean(axis=0), m, min(k, m), beta, plain)
            part += [(first * n + static[c], row) for c, row in zip(centres, merged)]
        moving = [j for j in range(n) if j not in static]
        for t in range(first, last + 1):
            kept = sorted(moving[i] for i in best([a[t, j] for j in moving], math.ceil(len(moving) * ratio - 1e-9)))
            part += [(t * n + j, x[t, j]) for j in kept]
        rows += part
        lengths.append(len(part))
    if newline in ("grid", "frame"):
        rows.sort(key=lambda item: item[0])
    mark = normal(x.shape[2], seed=99)
    unit = {"grid": width, "frame": n, "one_token": frames * n}.get(newline)
    sequence = []
    for i, (cell, row) in enumerate(rows):
        sequence.append(row)
        if told and unit and (i + 1 == len(rows) or rows[i + 1][0] // unit != cell // unit):
            sequence.append(mark)
    inputs = {"feat": raw, "attn": scores} | ({"newline": mark} if told else {})
    params = {"retain_ratio": share, "tau": TAU, "beta": beta, "k": k, "max_window": 6, "newline": newline, **more}
    params |= {"pool": kind, "pool_stride": 2, "side": side} if kind else {}
    expected = {
        "tokens": floats([row for _, row in rows]),
        "sequence": floats(sequence),
        "pooled": floats(x),
        "segments": np.array(segments),
        "segment_lengths": np.array(lengths),
        "retain_ratio": np.float32(ratio),
    }
    return inputs, params, expected


def inner(length: int, start: int, n: int, share: float, layer: int, layers: int) -> Case:
    hidden, maps = normal(length, 6, seed=12), attention_maps(3, length, seed=13)
    score = maps.astype(np.float64).mean(axis=0)
    keep = sorted(start + i for i in best(list(score[start : start + n]), round(n * (1 - share))))
    sources = [i for i in range(start, start + n) if i not in keep]
    targets = [keep[int(np.argmax([cosine(hidden[i], hidden[j]) for j in keep]))] for i in sources]
    rows = hidden.astype(np.float64)
    for i, j in zip(sources, targets):
        rows[j] = (rows[j] + rows[i]) / 2
    stays = [i for i in range(length) if i not in sources]
    params = {"start": start, "visual_tokens": n, "drop_ratio": share, "layer": layer, "layers": layers}
    expected = {
        "hidden": floats(rows[stays]),
        "position_ids": np.array(stays),
        "merge_source": np.array(sources),
        "merge_target": np.array(targets),
    }
    return {"hidden": hidden, "attn_last_row": maps}, params, expected


def cases() -> dict[str, Case]:
    return {
        "segments": segmentation(9, 12, 3),
        "clusters_plain": clusters(20, 6, 4, 4, 0.3, True),
        "clusters_few": clusters(18, 3, 3, 7, 0.3, False),
        "clusters_few_all_neighbours": clusters(18, 3, 7, 7, 0.9, False),
        "video_without_pooling": video(8, 4, 0.3, None, "no_token", False, {}),
        "video_plain_means": video(7, 5, 0.4, None, "one_token", True, {"plain_mean": True}),
        "video_rows_without_pooling": video(8, 4, 0.3, None, "grid", True, {"beta": 0.9, "dominant_share": 1.0}),
        "video_bilinear_frames": video(9, 5, 0.4, "bilinear", "frame", True, {}),
        "video_max_one_newline": video(8, 7, 0.35, "max", "one_token", True, {}),
        "video_average_rows_untold": video(8, 6, 0.35, "average", "grid", False, {}),
        "fold_odd": inner(31, 3, 17, 0.3, 2, 3),
        "fold_all_but_few": inner(40, 9, 25, 0.8, 30, 32),
    }
