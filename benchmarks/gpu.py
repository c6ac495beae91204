"""All that a GPU has to say, in one run: tests, operations, whole models, the same compiled; data files and a page.

python benchmarks/gpu.py [--minutes 8] [--out benchmarks/results/gpu] [--dry]

What matters most comes first, every part is written as soon as it is measured, and what there was no time for is named.
``--dry`` goes the same way on a CPU, on the smallest sizes and the built-in model: nothing it writes is a measurement.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from performance import markdown, models, operations
from rich.console import Console

import tokenreduce as tr
from tokenreduce.eval.bench import run, shapes
from tokenreduce.eval.bench.timing import spread as spread_of
from tokenreduce.eval.bench.timing import take_turns
from tokenreduce.eval.results import surroundings, write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/gpu"
SHAPES = ("llava-1.5-7b", "qwen2.5-vl-7b", "llava-next", "llava-ov-video")
SHARES = (0.25, 0.5, 0.11)
BATCHES = (1, 8)
FEW = ("fastervlm", "hiprune", "divprune", "visionzip", "fastv", "tome")  # where there is no time for every method
VIDEO = ("holitom", "dycoke", "fastvid", "evs", "vidcom2", "uniform")
COMPILED = {"default": {}, "CUDA graphs": {"mode": "reduce-overhead"}}

Content = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One file of the results: its name, and what measures it."""

    name: str
    measure: Callable[[], Content]


@dataclass(frozen=True)
class Setting:
    """Where and how large: ``dry`` is small, and on whatever there is."""

    dry: bool
    device: torch.device
    say: Callable[[str], None]

    def place(self, dtype: torch.dtype, rounds: int) -> run.Place:
        return run.Place(self.device, dtype, 1 if self.dry else rounds, self.say)

    def parts(self) -> Iterator[Part]:
        """What matters most first."""
        yield Part("tests", self.tests)
        if self.dry:
            yield Part("operations", lambda: self.operations(torch.float32))
            yield Part("demo", lambda: self.models(shapes.DEMO, SHARES[0], 1, FEW[:1], torch.float32))
            yield Part("compiled", lambda: self.compiled(shapes.DEMO, torch.float32))
            return
        yield Part("operations", lambda: self.operations(torch.bfloat16))
        first, *cells = itertools.product(SHARES, BATCHES, SHAPES)
        yield self.cell(*first)
        yield Part("compiled", lambda: self.compiled(SHAPES[0], torch.bfloat16))
        for cell in cells[: len(SHAPES) - 1]:
            yield self.cell(*cell)
        yield Part("operations_float32", lambda: self.operations(torch.float32))
        for cell in cells[len(SHAPES) - 1 :]:
            yield self.cell(*cell)
        for shape in SHAPES:
            yield self.cell(SHARES[0], BATCHES[0], shape, every=True)

    def cell(self, share: float, batch: int, shape: str, *, every: bool = False) -> Part:
        """One shape at one budget, with a few methods or ``every`` one that it takes."""
        few = FEW if shapes.SHAPES[shape].media == "image" else VIDEO
        name = f"{shape}_every_method" if every else f"{shape}_{round(100 * share)}_batch_{batch}"
        return Part(name, lambda: self.models(shape, share, batch, None if every else few, torch.bfloat16))

    def tests(self) -> Content:
        """Those that need a GPU; dry, that there are some."""
        more = ["--collect-only"] if self.dry else []
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *more, "tests/kernels", "tests/adapters"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        last = done.stdout.strip().splitlines()[-1]
        if done.returncode:
            raise RuntimeError(f"{last}\n{done.stdout[-4000:]}")
        return {"what": "tests", "title": "Tests that need a GPU", "said": last}

    def operations(self, dtype: torch.dtype) -> Content:
        return run.operations_table(self.place(dtype, 5), None, smallest=self.dry)[0]

    def models(
        self, shape: str, share: float, batch: int, names: tuple[str, ...] | None, dtype: torch.dtype
    ) -> Content:
        """``names``: methods; None: all that the shape takes."""
        place = self.place(dtype, 3)
        try:
            return run.models_table(place, shape, names, share, [batch], None, None, "sdpa")[0]
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def compiled(self, name: str, dtype: torch.dtype) -> Content:
        """Prefill of one shape, compiled unreduced and compiled with FasterVLM; what cannot be compiled says why."""
        shape, share = shapes.SHAPES[name], SHARES[0]
        model = shape.build(shape.depth, shape.tower_depth, self.device, dtype, "sdpa")
        inputs = shape.inputs(self.device, dtype)
        # dry, no compiler is asked for: there may be none for a CPU
        modes = {"not compiled, only traced": {"backend": "eager"}} if self.dry else COMPILED
        rows = [self.compiled_row(model, inputs, share, mode, options) for mode, options in modes.items()]
        return self.place(dtype, 5).record("compiled", f"{shape.title}, under torch.compile", keep=share, rows=rows)

    def compiled_row(self, model: Any, inputs: Any, share: float, mode: str, options: dict[str, Any]) -> Content:
        found: dict[str, Any] = {"mode": mode, "method": "fastervlm"}
        try:
            for arm in ("unreduced", "reduced"):
                torch._dynamo.reset()
                if arm == "reduced":
                    tr.wrap(model, "fastervlm", keep=share)
                call = torch.compile(model, **options)
                laps = take_turns({arm: lambda call=call: call(**inputs)}, 1 if self.dry else 5, self.device)
                found[f"{arm}_ms"] = spread_of([s * 1e3 for s in laps[arm]])
        except Exception as error:
            found["refused"] = f"{type(error).__name__}: {str(error)[:300]}"
        finally:
            tr.unwrap(model)
            torch._dynamo.reset()
        return found


def compiled(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        one = {"mode": row["mode"], "method": f"`{row['method']}`"}
        if "refused" in row:
            lines.append(one | {"unreduced ms": "", "reduced ms": "", "speed-up": row["refused"].replace("\n", " ")})
            continue
        before, after = row["unreduced_ms"], row["reduced_ms"]
        times = {"unreduced ms": f"{before['median']:.3g}", "reduced ms": f"{after['median']:.3g}"}
        lines.append(one | times | {"speed-up": f"{before['median'] / after['median']:.2f}x"})
    return markdown(lines)


def page(found: dict[str, Content], run_at: Content) -> str:
    """What was measured, as Markdown."""
    at = run_at["environment"]
    said = "dry run, no measurement" if run_at["dry"] else run_at["device"]
    parts = [
        f"# On a GPU\n\n{said}: torch {at['torch']}, transformers {at['transformers']}, {run_at['minutes']:.1f} minutes. "
        "Written by `python benchmarks/gpu.py`.\n"
    ]
    tables = {"ops": operations, "models": models, "compiled": compiled}
    for name, content in found.items():
        parts.append(f"## {content['title']}\n\n{content.get('said') or tables[content['what']](content['rows'])}\n")
        parts.append(f"Data: `{name}.json`.\n")
    for title, reasons in (("Failed", run_at["failed"]), ("No time left for", run_at["left_out"])):
        if reasons:
            lines = reasons.items() if isinstance(reasons, dict) else ((name, "") for name in reasons)
            parts.append(
                f"## {title}\n\n" + "\n".join(f"* `{name}` {why.splitlines()[0] if why else ''}" for name, why in lines)
            )
    return "\n".join(parts) + "\n"


def measure(setting: Setting, out: Path, minutes: float) -> tuple[dict[str, Content], Content]:
    """Every part until ``minutes`` are over, each written to ``out`` as soon as it is there."""
    out.mkdir(parents=True, exist_ok=True)
    start, found, failed, left_out = time.monotonic(), {}, {}, []
    for part in setting.parts():
        if time.monotonic() - start > 60 * minutes:
            left_out.append(part.name)
            continue
        setting.say(part.name)
        try:
            found[part.name] = part.measure()
            write_json(out / f"{part.name}.json", found[part.name])
        except Exception as error:  # one part must not cost the others
            failed[part.name] = f"{type(error).__name__}: {error}\n{traceback.format_exc()[-2000:]}"
    name = torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else "CPU"
    facts = {"dry": setting.dry, "device": name, "environment": surroundings(setting.device)}
    return found, {**facts, "minutes": (time.monotonic() - start) / 60, "failed": failed, "left_out": left_out}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="begin no part after this [%(default)s]")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of data and page [%(default)s]")
    parser.add_argument("--dry", action="store_true", help="the same way on the smallest sizes, on whatever there is")
    asked = parser.parse_args()
    console = Console(stderr=True)
    if not asked.dry and not torch.cuda.is_available():
        console.print("There is no CUDA device here; --dry goes the same way on the smallest sizes.")
        return 2
    if asked.dry and asked.out == RESULTS:
        console.print(
            f"--dry measures nothing, and {RESULTS.relative_to(ROOT)} is for measurements; give another --out"
        )
        return 2
    with console.status("beginning") as status:
        device = torch.device("cpu" if asked.dry else "cuda:0")
        found, run_at = measure(Setting(asked.dry, device, status.update), asked.out, asked.minutes)
    write_json(asked.out / "run.json", run_at)
    (asked.out / "page.md").write_text(page(found, run_at))
    console.print(
        f"{len(found)} parts in {asked.out}; {len(run_at['failed'])} failed: {', '.join(run_at['failed']) or 'none'}"
    )
    return 1 if run_at["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
