"""``tokenreduce bench towers``: ToMe in timm's vision transformers, throughput against FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from .timing import seconds, spread

#: timm name, pixels and r as published (ToMe's README, off the shelf)
TOWERS = {
    "vit-b-16": ("vit_base_patch16_224", 224, 13),
    "vit-l-16-384": ("vit_large_patch16_384", 384, 23),
}


def build(name: str, layers: int | None, device: torch.device, dtype: torch.dtype) -> Any:
    """The tower with random weights, its first ``layers`` blocks or all.

    Errors: ``ValueError`` for an unknown name.
    """
    import timm

    if name not in TOWERS:
        raise ValueError(f"--tower={name!r}; allowed: {', '.join(TOWERS)}")
    torch.manual_seed(0)
    more: dict[str, Any] = {} if layers is None else {"depth": layers}
    return timm.create_model(TOWERS[name][0], pretrained=False, **more).eval().to(device, dtype)


def block_flops(n: int, width: int) -> float:
    """FLOPs of attention and of the MLP of one block over ``n`` tokens, a multiply-add counting 2; ratio 4."""
    return 2 * n * width * width * 4 + 4 * n * n * width


def flops(tower: Any, r: int) -> float:
    """Of all blocks, r tokens merged between attention and MLP of each; patch embedding and head left out."""
    n, width, total = tower.patch_embed.num_patches + 1, tower.embed_dim, 0.0
    for _ in tower.blocks:
        total += block_flops(n, width)
        n -= min(r, (n - 1) // 2)
        total += 16 * n * width * width
    return total


def measure(
    tower: Any, name: str, batches: Sequence[int], rounds: int, advance: Callable[[str], None] = lambda what: None
) -> list[dict[str, Any]]:
    """Pictures per second with and without ToMe, in turns, with and without proportional attention."""
    import tokenreduce as tr

    _, side, r = TOWERS[name]
    parameter = next(tower.parameters())
    arms: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "unreduced": nullcontext,
        "tome": lambda: tr.wrapped(tower, tr.ToMe(r=r)),
        "tome, plain attention": lambda: tr.wrapped(tower, tr.ToMe(r=r, proportional=False)),
    }
    rows = []
    for batch in batches:
        advance(f"{name} batch {batch}")
        pixels = torch.randn(batch, 3, side, side, device=parameter.device, dtype=parameter.dtype)
        laps: dict[str, list[float]] = {arm: [] for arm in arms}
        with torch.inference_mode():
            for turn in range(rounds + 1):
                for arm, context in arms.items():
                    with context():
                        lap = seconds(partial(tower, pixels), parameter.device)
                    if turn:
                        laps[arm].append(lap)
        ideal = flops(tower, 0) / flops(tower, r)
        for arm in list(arms)[1:]:
            gain = spread([a / b for a, b in zip(laps["unreduced"], laps[arm])])
            rows.append(
                {
                    "tower": name,
                    "arm": arm,
                    "r": r,
                    "batch": batch,
                    "blocks": len(tower.blocks),
                    "images_per_s": spread([batch / s for s in laps[arm]]),
                    "unreduced_images_per_s": spread([batch / s for s in laps["unreduced"]]),
                    "speedup": gain,
                    "flops_ideal": ideal,
                    "of_ideal": gain["median"] / ideal,
                }
            )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the terminal shows of ``rows``."""
    return [
        {
            "tower": f"{row['tower']}, {row['blocks']} blocks",
            "arm": f"{row['arm']}, r={row['r']}",
            "batch": row["batch"],
            "images/s": f"{row['images_per_s']['median']:.3g}",
            "unreduced": f"{row['unreduced_images_per_s']['median']:.3g}",
            "speed-up": f"{row['speedup']['median']:.2f}x",
            "FLOPs": f"{row['flops_ideal']:.2f}x",
            "of ideal": f"{row['of_ideal']:.2f}",
        }
        for row in rows
    ]
