"""Write the tables of README.md from the committed results and the registry of methods.

python benchmarks/update_readme.py [--check]
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks/results/demo.json"
SHOWN = (0.25, 0.11)


def demo_table(results: dict[str, Any]) -> str:
    """The unreduced model and every method at the budgets SHOWN, on the test split, and at 8 tokens on the hard one."""
    rows, settings, place = results["rows"], results["settings"], results["environment"]
    test = {(row["method"], row["keep"]): row for row in rows if row["split"] == "test"}
    hard = {row["method"]: row for row in rows if row["split"] == "hard"}
    plain = test["unreduced", 1.0]
    lines = [
        "| method | " + " | ".join(f"accuracy at {k:.0%} | prefill" for k in SHOWN) + " | 8 objects, 8 tokens |",
        "| --- |" + " --- | --- |" * len(SHOWN) + " --- |",
        f"| unreduced, {plain['tokens']} tokens | "
        + " | ".join(f"{accuracy(plain)} | 1x" for _ in SHOWN)
        + f" | {accuracy(hard['unreduced'])} with all |",
    ]
    for name in settings["methods"]:
        cells = [f"{accuracy(test[name, k])} | {test[name, k]['prefill_speedup']['median']:.1f}x" for k in SHOWN]
        lines.append(f"| `{name}` | " + " | ".join(cells) + f" | {accuracy(hard[name])} |")
    return "\n".join(
        [
            f"What `make demo` measured ({plain['questions']} questions, 95 % intervals; prefill speed-up: median of "
            f"{settings['timed_rounds']} paired rounds of {settings['timed_prompts']} prompts, language model only, against "
            f"the unreduced model, both on {place['attention']}; {place['cpu']}, {place['threads']} threads, torch "
            f"{place['torch']}, transformers {place['transformers']}):",
            "",
            *lines,
            "",
            "The model is tiny and its questions are synthetic: this shows that the machinery works and tells methods from "
            "chance, nothing about ranks on real benchmarks. Data: [benchmarks/results/demo.json](benchmarks/results/demo.json).",
        ]
    )


def accuracy(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{100 * row['accuracy']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def methods_table() -> str:
    import tokenreduce as tr
    from tokenreduce.registry import catalogue

    lines = ["| name | stage | looks at | paper | file |", "| --- | --- | --- | --- | --- |"]
    for row in tr.methods():
        file = catalogue()[row["name"]].__module__.replace(".", "/") + ".py"
        page = row["name"] if catalogue()[row["name"]].paper else "baselines"
        cells = (
            f"[`{row['name']}`](docs/methods/{page}.md)",
            row["stages"],
            row["looks_at"],
            row["paper"],
            f"[{Path(file).name}]({file})",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tested_versions() -> str:
    import tokenreduce as tr

    spans = []
    for row in tr.versions():
        oldest, newest = row["oldest_tested"], row["newest_tested"]
        spans.append(f"{row['library']} {oldest}" + (f" to {newest}" if newest != oldest else ""))
    return f"Tested from the oldest to the newest versions allowed: {', '.join(spans)}."


def filled(text: str) -> str:
    """README with its marked parts written anew."""
    parts = {"demo-table": demo_table(json.loads(RESULTS.read_text())), "methods-table": methods_table()}
    parts["tested-versions"] = tested_versions()
    for name, content in parts.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not mark.search(text):
            raise ValueError(f"README.md has no part marked <!-- {name} -->")
        text = mark.sub(lambda m, content=content: f"{m[1]}{content}\n{m[2]}", text)
    return text


def main() -> int:
    old = README.read_text()
    new = filled(old)
    if "--check" in sys.argv:
        return 0 if new == old else 1
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
