"""What is saved inside a tower like Qwen2.5-VL's: seconds against FLOPs, methods in turns with the unreduced tower.

python benchmarks/tower.py [--units 1024 4096] [--width 640] [--depth 32] [--rounds 5]    (writes benchmarks/results/tower.json)

Random weights, heads of 80, windows and full blocks as published; ``--width`` channels, 1,280 in the real one; the language model
behind it is as small as it can be. The picture is a screenshot, drawn by program. A unit is 2 x 2 patches, one visual token.
What is timed is the tower, the choice of units in front of it and the merging in it included.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from pages import screenshot
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor

import tokenreduce as tr
from tokenreduce.eval.results import surroundings, write_json
from tokenreduce.timing import speed_up, time_prefill

DATA = Path(__file__).parent / "results/tower.json"
ARMS = {
    "uniform, at='pixels', 50 %": lambda: tr.Uniform(keep=0.5, at="pixels"),
    "pixelprune, 50 %": lambda: tr.PixelPrune(keep=0.5),
    "pixelprune, what repeats exactly": lambda: tr.PixelPrune(),
    "tome, 50 %": lambda: tr.ToMe(keep=0.5),
    "pitome, preset='keys', 50 %": lambda: tr.PiToMe(keep=0.5, preset="keys"),
}
UNIT = 28  # pixels on a side
HEAD, PUBLISHED_DEPTH, FULL = 80, 32, (7, 15, 23, 31)
IMAGE, START, END = 3, 1, 2


def build(width: int, depth: int) -> Any:
    """The tower ``width`` wide, in front of one decoder layer."""
    full = [i for i in FULL if i < depth] or [depth - 1]
    tower = {
        "depth": depth,
        "hidden_size": width,
        "intermediate_size": width * 3420 // 1280,
        "num_heads": width // HEAD,
        "out_hidden_size": 64,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": full,
    }
    words = {
        "vocab_size": 32,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 65536,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    }
    ids = {"image_token_id": IMAGE, "video_token_id": 4, "vision_start_token_id": START, "vision_end_token_id": END}
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(vision_config=tower, text_config=words, **ids)).eval()


def prompt(image: Image.Image) -> dict[str, torch.Tensor]:
    """One picture as the processor hands it over, between two words."""
    seen = Qwen2VLImageProcessor(max_pixels=10**9)(images=[image], return_tensors="pt")
    n = int(seen["image_grid_thw"][0].prod()) // 4
    ids = torch.tensor([[9, START, *[IMAGE] * n, END, 8]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).long(),
        **{name: seen[name] for name in ("pixel_values", "image_grid_thw")},
    }


def measure(model: Any, units: int, rounds: int) -> list[dict[str, Any]]:
    inputs = prompt(screenshot(UNIT * round(units**0.5)))
    arms = {"unreduced": nullcontext, **{name: (lambda m=make: tr.wrapped(model, m())) for name, make in ARMS.items()}}
    laps = time_prefill(model, inputs, arms, rounds, by_stage=True)
    before = [lap.seconds["tower"] for lap in laps["unreduced"]]
    rows = []
    for name in ARMS:
        after = [lap.seconds["tower"] for lap in laps[name]]
        report = laps[name][-1].report
        assert report is not None, "wrapped"
        cost, gained = report.by_stage["tower"], speed_up(before, after)
        ideal = cost.flops_unreduced / cost.flops
        rows.append(
            {
                "method": name,
                "units": units,
                "left": report.tokens_kept[0][0],
                "unreduced_s": statistics.median(before),
                "reduced_s": statistics.median(after),
                "speedup": dataclasses.asdict(gained),
                "flops_ideal": ideal,
                "of_ideal": gained.median / ideal,
                "own_share": report.method_ms / 1e3 / statistics.median(before),
            }
        )
        print(
            f"{units} units, {name}: {gained.median:.2f}x of {ideal:.2f}x, {gained.median / ideal:.2f} of ideal",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--depth", type=int, default=PUBLISHED_DEPTH)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=DATA)
    asked = parser.parse_args()
    model = build(asked.width, asked.depth)
    rows = [row for units in asked.units for row in measure(model, units, asked.rounds)]
    facts = {"width": asked.width, "depth": asked.depth, "rounds": asked.rounds, "threads": torch.get_num_threads()}
    write_json(asked.out, {**facts, "environment": surroundings(torch.device("cpu")), "rows": rows})


if __name__ == "__main__":
    main()
