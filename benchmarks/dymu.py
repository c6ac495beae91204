"""DyMU beside ToMe on the demo model: tokens by how much a scene holds, and answers, at equal mean numbers of tokens.

python benchmarks/dymu.py [--scenes 40] [--out benchmarks/results/dymu.json]

Thresholds are found on 256 scenes of the split ``train``; questions are of ``test``. ToMe keeps as many tokens of every scene as
DyMU does on average, rounded up. Costs are those that the report gives of the towers' and the decoder's matrices.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import tokenreduce as tr
from tokenreduce.eval import demo
from tokenreduce.eval.demo.measure import Bench, wilson
from tokenreduce.eval.results import environment, write_json
from tokenreduce.loading import picture_batch

KEEPS = (0.25, 0.11, 0.06)
BATCH = 32


def pictures(questions: list[Any]) -> list[Any]:
    """A question for each scene."""
    return list({question.index: question for question in questions}.values())


def batches(processor: Any, model: Any, images: list[Image.Image]) -> list[dict[str, Any]]:
    return [picture_batch(processor, images[i : i + BATCH], model) for i in range(0, len(images), BATCH)]


def row(bench: Bench, scenes: list[Any], method: tr.Method, budget: float) -> dict[str, Any]:
    """What ``method`` leaves of every scene, what that costs, and how many questions are answered."""
    model = bench.model
    kept: list[int] = []
    flops = whole = 0
    with tr.wrapped(model, method), torch.inference_mode():
        for batch in batches(bench.processor, model, [scene.image for scene in scenes]):
            model(**batch)
            report = tr.report(model)
            kept += [own[0] for own in report.tokens_kept]
            flops, whole = flops + report.flops, whole + report.flops_unreduced
        replies = bench.replies()
    right = sum(demo.right(reply, question.answer) for reply, question in zip(replies, bench.asked))
    things = sorted({len(scene.scene.things) for scene in scenes})
    return {
        "method": method.name,
        "keep": budget,
        "tokens": {"mean": statistics.mean(kept), "stdev": statistics.pstdev(kept), "min": min(kept), "max": max(kept)},
        "tokens_by_things": {
            str(count): statistics.mean(k for k, scene in zip(kept, scenes) if len(scene.scene.things) == count)
            for count in things
        },
        "prefill_flops_share": flops / whole,
        "questions": len(replies),
        "accuracy": right / len(replies),
        "interval": wilson(right, len(replies)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/dymu.json")
    options = parser.parse_args()
    model, processor = demo.load()
    trained = [question.image for question in pictures(demo.questions("train", 256))]
    bench = Bench(model, processor, demo.questions("test", options.scenes))
    scenes = pictures(bench.asked)
    rows, calibrations = [], []
    for keep in KEEPS:
        found = tr.calibrate(model, batches(processor, model, trained), keep=keep)
        calibrations.append(found.content())
        rows.append(row(bench, scenes, tr.DyMU(calibration=found), keep))
        count = -int(-rows[-1]["tokens"]["mean"] // 1)
        rows.append(row(bench, scenes, tr.ToMe(keep=count), keep))
        for one in rows[-2:]:
            print(
                one["method"], one["keep"], one["tokens"], f"{one['accuracy']:.3f}", f"{one['prefill_flops_share']:.3f}"
            )
    given = bench.replies()
    right = sum(demo.right(reply, question.answer) for reply, question in zip(given, bench.asked))
    made = {
        "scenes": options.scenes,
        "tokens_in": bench.tokens_per_image,
        "unreduced": {"accuracy": right / len(given), "interval": wilson(right, len(given))},
        "rows": rows,
        "calibrations": calibrations,
        "environment": environment(model),
    }
    write_json(options.out, made)


if __name__ == "__main__":
    main()
