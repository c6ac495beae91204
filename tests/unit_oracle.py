"""The reference for merging by units inside a tower that packs its pictures: its parts called one by one, unit by unit.

Shares no code with the hooks. A unit is (p, D), its patches in the order of the pooling window. Segments run one by one, windows
within them one by one; attention is written out, groups are averaged by hand, and the model's own merger is given what is left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from encoder_oracle import attend, norm1, scale
from torch import Tensor

import tokenreduce as tr
from tokenreduce.adapters.registry import family_of


@dataclass
class Unit:
    """Patches (p, D), how many units they stand for, the original units these are, and the one whose place they have."""

    patches: Tensor
    members: list[int]
    seat: int


@dataclass
class Told:
    """Of a pass: features (U, C) of every original unit, and those of blocks beside them; final groups; rows per block."""

    features: Tensor
    beside: list[Tensor]
    units: list[Unit]
    rows: list[int]


class _Stop(Exception):
    pass


def caught(model, pixels, grid) -> tuple[Tensor, list[dict]]:
    """What the bare tower hands to its first block, and the other arguments of every block."""
    tower = family_of(model).towers[0]
    first, arguments = [], []

    def catch(module, args, kwargs):
        first.append(args[0])
        arguments.append(kwargs)

    handles = [block.register_forward_pre_hook(catch, with_kwargs=True) for block in tower.blocks]
    tower(pixels, grid_thw=grid)
    for handle in handles:
        handle.remove()
    return first[0], arguments


@torch.no_grad()
def explicit(model, pixels: Tensor, grid: Tensor, method: tr.Method) -> Told:
    """``pixels`` of pictures ``grid`` (M, 3) through the bare tower of ``model``, with ``method`` merging in its blocks."""
    family = family_of(model)
    tower, side = family.towers[0], family.towers[0].spatial_merge_size
    p = side**2
    x, arguments = caught(model, pixels, grid)
    segments, layouts = [], []
    for t, h, w in grid.tolist():
        whole = t * h * w // p
        share = method.budget.count(whole)
        for frame in range(t):
            begin = sum(map(len, segments))
            area = h * w // p
            segments.append([Unit(x[u * p : u * p + p], [u], u) for u in range(begin, begin + area)])
            own = share // t + (frame < share % t)  # the first frames get the remainder
            layouts.append((begin, area, replace(method, keep=own) if own < area else None))
    facts = family.facts()
    beside, rows = [], []
    stacks = getattr(tower, "deepstack_merger_list", None) or []
    for i, block in enumerate(tower.blocks):
        given = arguments[i]
        cuts = given["cu_seqlens"].tolist()
        windowed = len(cuts) - 1 > len(segments)
        rows.append(p * sum(map(len, segments)))
        for s, (begin, area, own) in enumerate(layouts):
            units = segments[s]
            window = [max(c for c in range(len(cuts) - 1) if cuts[c] <= u.seat * p) for u in units]
            if windowed and any(len(unit.members) > 1 or unit.seat != begin + n for n, unit in enumerate(units)):
                order = sorted(range(len(units)), key=lambda n: window[n])  # stable
                units, window = [units[n] for n in order], [window[n] for n in order]
            size = torch.tensor([float(len(u.members)) for u in units])
            step = None
            if own is not None:
                known = replace(facts, tower_grid=(1, area))
                step = next((s for s in own.plan(known) if s.stage == "encoder" and s.layer == i), None)
            proportional = any(s.proportional for s in method.plan(replace(facts, tower_grid=None)))
            normed = [block.norm1(u.patches) for u in units]
            keys = torch.stack([_keys(block.attn, n) for n in normed])
            out = _attend(block.attn, units, normed, window, size.log() if proportional else None, given, p)
            units = [replace(u, patches=u.patches + o) for u, o in zip(units, out)]
            if step is not None and step.when == "middle":
                units = _merged(own, step, units, keys, size, window if windowed else None)
            units = [replace(u, patches=u.patches + block.mlp(block.norm2(u.patches))) for u in units]
            if step is not None and step.when == "after":
                units = _merged(own, step, units, keys, size, window if windowed else None)
            segments[s] = units
        if hasattr(tower, "deepstack_visual_indexes") and i in tower.deepstack_visual_indexes:
            left = [u for units in segments for u in units]
            merger = stacks[tower.deepstack_visual_indexes.index(i)]
            beside.append(_full(merger(torch.cat([u.patches for u in left])), left))
    left = [u for units in segments for u in units]
    last = torch.cat([u.patches for u in left])
    if hasattr(tower, "downsample"):  # GLM-4V joins the patches of a unit by a convolution, then projects
        last = tower.post_layernorm(last) if hasattr(tower, "post_layernorm") else last
        squares = last.view(-1, side, side, last.shape[-1]).permute(0, 3, 1, 2)
        last = tower.downsample(squares).view(len(left), -1)
    behind = getattr(family.core, "projector", None) or torch.nn.Identity()  # of HyperCLOVA X
    features = _full(behind(tower.merger(last)), left)
    # features of blocks are those of the groups that are left in the end
    beside = [_full(torch.stack([x[u.members].mean(0) for u in left]), left) for x in beside]
    return Told(features, beside, left, rows)


def _full(rows: Tensor, units: list[Unit]) -> Tensor:
    """One of ``rows`` for each unit, copied to all it stands for."""
    full = rows.new_zeros(sum(len(u.members) for u in units), rows.shape[1])
    for row, unit in zip(rows, units, strict=True):
        full[unit.members] = row
    return full


def _qkv(attn, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(n, H, d) each; heads that share keys are repeated."""
    if hasattr(attn, "qkv"):
        out = attn.qkv(x)
        heads, shared = attn.num_heads, getattr(attn, "num_key_value_heads", None) or attn.num_heads
        d = out.shape[-1] // (heads + 2 * shared)
        q, k, v = out.split([heads * d, shared * d, shared * d], dim=-1)
    else:
        q, k, v = attn.q(x), attn.k(x), attn.v(x)
        heads = shared = attn.num_heads
    q, k, v = q.unflatten(-1, (heads, -1)), k.unflatten(-1, (shared, -1)), v.unflatten(-1, (shared, -1))
    return q, k, v


def _keys(attn, normed: Tensor) -> Tensor:
    """(d,) the mean key of the patches (p, D) of a unit."""
    return _qkv(attn, normed)[1].float().mean(dim=1).mean(dim=0)


def _attend(attn, units, normed, window, bias, given, p: int) -> list[Tensor]:
    cos, sin = (table.reshape(-1, table.shape[-1]) for table in given["position_embeddings"])
    out: list = [None] * len(units)
    for own in sorted(set(window)):
        members = [n for n, w in enumerate(window) if w == own]
        at = torch.cat([torch.arange(p) + units[n].seat * p for n in members])
        q, k, v = _qkv(attn, torch.cat([normed[n] for n in members]))
        if hasattr(attn, "q_norm"):
            q, k = attn.q_norm(q), attn.k_norm(k)
        q, k = (t * cos[at][:, None] + _half(t) * sin[at][:, None] for t in (q, k))
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        logits = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
        if bias is not None:
            logits = logits + bias[members].repeat_interleave(p)
        y = torch.einsum("hqk,khd->qhd", logits.softmax(-1), v).flatten(1)
        for n, rows in zip(members, attn.proj(y).split(p)):
            out[n] = rows
    return out


def _half(t: Tensor) -> Tensor:
    low, high = t.chunk(2, -1)
    return torch.cat([-high, low], -1)


def _merged(method, step, units: list[Unit], keys, size, window, prefix=None) -> list[Unit]:
    """Who joins whom is what the method says of one segment; patches of a group are averaged one by one.

    ``prefix``: rows (P, D) in front of the patches, and their keys (P, d).
    """
    features, p = torch.stack([u.patches.mean(0) for u in units]), 0
    if prefix is not None:
        p, (rows, own) = len(prefix[0]), prefix
        features, keys, size = torch.cat([rows, features]), torch.cat([own, keys]), torch.cat([torch.ones(p), size])
    tokens = tr.VisualTokens(
        features=features[None],
        layout=tr.Layout(1, len(units)),
        stage="encoder",
        layer=step.layer,
        size=size[None],
        amount=step.amount,
        prefix=p,
        signals=dict.fromkeys(step.needs, keys[None]),
        window=None if window is None else torch.tensor(window)[None],
    )
    plan = method.reduce(tokens)
    weight = (torch.ones_like(size) if plan.weight is None else plan.weight[0])[p:]
    if not plan.merges:
        weight = torch.zeros_like(size).index_fill(0, plan.source[0], 1.0)[p:]
    found = []
    for row, source in list(enumerate((plan.source[0] - p).tolist()))[p:]:
        group = (plan.assign[0, p:] == row).nonzero()[:, 0].tolist()
        share = weight[group] / weight[group].sum()
        patches = sum(a * units[n].patches for a, n in zip(share, group))
        found.append(Unit(patches, sorted(m for n in group for m in units[n].members), units[source].seat))
    return found


@torch.no_grad()
def explicit_tiles(model, inputs: dict, method: tr.Method) -> tuple[list[Tensor], list[list[Unit]], list[int]]:
    """The tiles of ``inputs`` through a bare tower whose tokens are squares of patches in raster order, merging unit by unit.

    Returns, per call of the tower, the output of its feature block at full width (tiles, rows, D); per tile the units that are
    left, their members and seats counted in raster order; and the rows of a tile in each block.
    """
    family = family_of(model)
    facts, side, first = family.facts(), family.unit, family.tower_prefix
    calls = []

    def catch(module, args, kwargs):
        calls.append((args[0] if args else kwargs["hidden_states"]).clone())

    blocks = [family.block(i) for i in range(facts.tower_depth)]
    handle = blocks[0].module.register_forward_pre_hook(catch, with_kwargs=True)
    model(**inputs)
    handle.remove()
    height, width = family.grid
    squares = [
        [first + (top + i) * width + left + j for i in range(side) for j in range(side)]
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]
    proportional = any(s.proportional for s in method.plan(replace(facts, tower_grid=None)))
    steps = {s.layer: s for s in method.plan(facts) if s.stage == "encoder"}
    whole, groups, rows = [], [], []
    for tiles in calls:
        full = tiles.clone()
        for t, tile in enumerate(tiles):
            before = tile[:first]
            units = [Unit(tile[square], [n], n) for n, square in enumerate(squares)]
            rows = []
            for i in range(facts.feature_block + 1):
                m, block = blocks[i].module, blocks[i]
                rows.append(first + sum(len(u.patches) for u in units))
                size = torch.tensor([float(len(u.members)) for u in units])
                bias = torch.cat([torch.zeros(first), size.log().repeat_interleave(side**2)])
                x = torch.cat([before, *(u.patches for u in units)])
                normed = norm1(m)(x)[None]
                x = x + scale(m, 1, attend(block, normed, bias if proportional else None, None))[0]
                keys = _projected_keys(block, normed)[0]
                of_unit = keys[first:].unflatten(0, (len(units), side**2)).mean(1)
                before, units = x[:first], [replace(u, patches=own) for u, own in zip(units, x[first:].split(side**2))]
                step = steps.get(i)
                if step is not None and step.when == "middle":
                    units = _merged(method, step, units, of_unit, size, None, (before, keys[:first]))
                x = torch.cat([before, *(u.patches for u in units)])[None]
                x = (x + scale(m, 2, block.mlp(block.norm2(x))))[0]
                before, units = x[:first], [replace(u, patches=own) for u, own in zip(units, x[first:].split(side**2))]
                if step is not None and step.when == "after":
                    units = _merged(method, step, units, of_unit, size, None, (before, keys[:first]))
            full[t, :first] = before
            for unit in units:
                for member in unit.members:
                    full[t, squares[member]] = unit.patches
            groups.append(units)
        whole.append(full)
    return whole, groups, rows


def _projected_keys(block, normed: Tensor) -> Tensor:
    """(B, N, d) the mean key of each row over heads."""
    a = getattr(block.attention, "attention", block.attention)
    keys = a.k_proj(normed) if hasattr(a, "k_proj") else a.key(normed)
    return keys.unflatten(-1, (block.heads, -1)).float().mean(dim=2)
