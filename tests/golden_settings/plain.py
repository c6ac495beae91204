"""Loops that several methods share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Case = tuple[dict[str, np.ndarray], dict[str, object], dict[str, np.ndarray]]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention_maps(*shape: int, seed: int = 0, causal: bool = False) -> np.ndarray:
    """Post-softmax maps (..., queries, keys)."""
    logits = normal(*shape, seed=seed, scale=1.5).astype(np.float64)
    if causal:
        logits = np.where(np.tri(shape[-1], dtype=bool), logits, -np.inf)
    return softmax(logits).astype(np.float32)


def best(score: Sequence[float], k: int) -> list[int]:
    """The ``k`` highest, highest first, ties to the lowest index."""
    return sorted(range(len(score)), key=lambda i: (-score[i], i))[:k]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def padded(rows: list[list[int]]) -> np.ndarray:
    width = max(map(len, rows))
    return np.array([row + [-1] * (width - len(row)) for row in rows])


# ------------------------------------------------------------------ merging


def joined(anchors: list[int], to: dict[int, int], n: int) -> list[int]:
    """Output row of each of ``n`` tokens, rows being ``anchors`` and ``to`` what joins what."""
    place = {row: k for k, row in enumerate(anchors)}
    return [place[to.get(i, i)] for i in range(n)]


def means(x: np.ndarray, assign: list[int], weight: Sequence[float]) -> np.ndarray:
    rows = np.zeros((max(assign) + 1, x.shape[1]))
    mass = np.zeros(len(rows))
    for token, row in enumerate(assign):
        rows[row] += weight[token] * x[token].astype(np.float64)
        mass[row] += weight[token]
    return rows / mass[:, None]


def summed(size: Sequence[float], assign: list[int]) -> list[float]:
    return [sum(s for s, row in zip(size, assign) if row == k) for k in range(max(assign) + 1)]


def membership(assign: list[int]) -> np.ndarray:
    return np.array([[float(row == k) for row in assign] for k in range(max(assign) + 1)], dtype=np.float32)


def single(xs: np.ndarray, assigns: list[list[int]], sizes: np.ndarray) -> dict[str, np.ndarray]:
    """What vectors of one merge expect."""
    ones = np.ones(xs.shape[1])
    return {
        "x": floats([means(x, a, s) for x, a, s in zip(xs, assigns, sizes)]),
        "x_mean": floats([means(x, a, ones) for x, a in zip(xs, assigns)]),
        "size": floats([summed(s, a) for a, s in zip(assigns, sizes)])[..., None],
        "source": np.stack([membership(a) for a in assigns]),
        "assign": np.array(assigns),
    }


def floats(values: object) -> np.ndarray:
    return np.array(values).astype(np.float32)


# ------------------------------------------------------------------ a vision transformer of timm

Merge = Callable[[int, np.ndarray, np.ndarray, np.ndarray], "list[int] | None"]


def vit(
    state: dict[str, np.ndarray],
    image: np.ndarray,
    *,
    depth: int,
    heads: int,
    patch: int,
    prefix: list[str],
    merge: Merge,
    proportional: bool,
    weighted: bool = True,
    after: bool = False,
) -> tuple[np.ndarray, list[float], list[int]]:
    """Rows (K, D) after the final norm, their sizes, and the row of every first token, for one ``image`` (3, S, S).

    ``merge(block, keys, features, size)`` names the row of each token, between attention and MLP of a block or ``after`` it.
    """
    state = {name: value.astype(np.float64) for name, value in state.items()}
    side = image.shape[-1] // patch
    kernel = state["patch_embed.proj.weight"].reshape(len(state["patch_embed.proj.weight"]), -1)
    cells = [
        kernel @ image[:, patch * i : patch * (i + 1), patch * j : patch * (j + 1)].ravel().astype(np.float64)
        + state["patch_embed.proj.bias"]
        for i in range(side)
        for j in range(side)
    ]
    x = np.concatenate([*(state[name][0] for name in prefix), np.stack(cells)]) + state["pos_embed"][0]
    size, assign = np.ones(len(x)), list(range(len(x)))

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return unit * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    gelu = np.vectorize(lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2)

    def merged(block: int, keys: np.ndarray) -> None:
        nonlocal x, size, assign
        rows = merge(block, keys, x, size)
        if rows is not None:
            x = means(x, rows, size if weighted else np.ones(len(x)))
            size, assign = np.array(summed(size, rows)), [rows[row] for row in assign]

    for block in range(depth):
        at = f"blocks.{block}"
        q, k, v = np.split(linear(f"{at}.attn.qkv", norm(f"{at}.norm1", x)), 3, axis=-1)
        q, k, v = (t.reshape(len(x), heads, -1).transpose(1, 0, 2) for t in (q, k, v))
        logits = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]) + (np.log(size) if proportional else 0.0)
        x = x + linear(f"{at}.attn.proj", (softmax(logits) @ v).transpose(1, 0, 2).reshape(len(x), -1))
        if not after:
            merged(block, k.mean(0))
        x = x + linear(f"{at}.mlp.fc2", gelu(linear(f"{at}.mlp.fc1", norm(f"{at}.norm2", x))))
        if after:
            merged(block, k.mean(0))
    return norm("norm", x), list(size), assign


def vit_state(params: dict[str, object], seed: int, distilled: bool = False) -> dict[str, np.ndarray]:
    """Random weights in the shapes of timm's class."""
    import timm

    kind = timm.models.deit.VisionTransformerDistilled if distilled else timm.models.VisionTransformer
    shapes = {name: tuple(value.shape) for name, value in kind(**params).state_dict().items()}
    return {name: normal(*shape, seed=seed + i, scale=0.3) for i, (name, shape) in enumerate(shapes.items())}


# ------------------------------------------------------------------ a Llama


class Cached:
    """Keys and values of each layer as attention takes them, (H, L, d), and the attention (H, L, past + L) of its last run."""

    def __init__(self, depth: int) -> None:
        self.keys: list[np.ndarray] = [np.zeros(0)] * depth
        self.values: list[np.ndarray] = [np.zeros(0)] * depth
        self.maps: list[np.ndarray] = [np.zeros(0)] * depth
        self.logits: list[np.ndarray] = [np.zeros(0)] * depth

    def held(self) -> list[int]:
        return [keys.shape[1] for keys in self.keys]

    def trim(self, layer: int, rows: list[int]) -> None:
        self.keys[layer], self.values[layer] = self.keys[layer][:, rows], self.values[layer][:, rows]


class Decoder:
    """A Llama of random weights, layer by layer."""

    def __init__(self, heads: int, kv_heads: int, depth: int, width: int, seed: int, theta: float = 5000.0) -> None:
        self.heads, self.kv_heads, self.depth, self.width, self.theta, self.eps = (
            heads,
            kv_heads,
            depth,
            width,
            theta,
            1e-5,
        )
        self.size = width // heads
        shapes = {
            "w_q": (width, width),
            "w_k": (kv_heads * self.size, width),
            "w_v": (kv_heads * self.size, width),
            "w_o": (width, width),
            "w_gate": (24, width),
            "w_up": (24, width),
            "w_down": (width, 24),
            "w_ln1": (width,),
            "w_ln2": (width,),
        }
        self.weights = {n: normal(depth, *s, seed=seed + i, scale=0.4) for i, (n, s) in enumerate(shapes.items())}
        self.weights["w_norm"] = normal(width, seed=seed + 10)
        self.w = {name: value.astype(np.float64) for name, value in self.weights.items()}

    @property
    def params(self) -> dict[str, object]:
        names = {"heads": self.heads, "kv_heads": self.kv_heads, "hidden": self.width, "layers": self.depth}
        return {**names, "rope_theta": self.theta, "rms_eps": self.eps}

    def start(self) -> Cached:
        return Cached(self.depth)

    def norm(self, x: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.eps) * (self.w["w_norm"] if scale is None else scale)

    def turned(self, x: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        half = self.size // 2
        angle = np.outer(ids, self.theta ** (-np.arange(0, self.size, 2) / self.size))
        cos, sin = np.cos(angle), np.sin(angle)
        low, high = x[..., :half], x[..., half:]
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)

    def projected(self, x: np.ndarray, ids: Sequence[int], layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Queries and keys, rotated, and values, of what enters ``layer``; keys repeated over the queries that share them."""
        h = self.norm(x.astype(np.float64), self.w["w_ln1"][layer])
        q, k, v = (
            (h @ self.w[n][layer].T).reshape(len(h), -1, self.size).transpose(1, 0, 2) for n in ("w_q", "w_k", "w_v")
        )
        groups = self.heads // self.kv_heads
        return self.turned(q, ids), np.repeat(self.turned(k, ids), groups, axis=0), np.repeat(v, groups, axis=0)

    def run(self, state: Cached, x: np.ndarray, ids: Sequence[int], first: int, last: int) -> np.ndarray:
        """Rows ``x`` (L, C) with positions ``ids`` through layers ``first`` to ``last`` - 1, behind what these hold."""
        x = x.astype(np.float64)
        for i in range(first, last):
            q, k, v = self.projected(x, ids, i)
            if state.keys[i].size:
                k, v = np.concatenate([state.keys[i], k], axis=1), np.concatenate([state.values[i], v], axis=1)
            state.keys[i], state.values[i] = k, v
            seen = np.tri(len(x), k.shape[1], k.shape[1] - len(x), dtype=bool)
            state.logits[i] = np.where(seen, q @ k.transpose(0, 2, 1) / self.size**0.5, -np.inf)
            state.maps[i] = softmax(state.logits[i])
            x = x + (state.maps[i] @ v).transpose(1, 0, 2).reshape(len(x), -1) @ self.w["w_o"][i].T
            h = self.norm(x, self.w["w_ln2"][i])
            gate = h @ self.w["w_gate"][i].T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ self.w["w_up"][i].T)) @ self.w["w_down"][i].T
        return x
