"""Who may import whom, as docs/architecture.md says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOUNS = {"method", "signals", "tokens"}
ALLOWED = {
    "kernels": {"kernels"},
    "tokenreduce/methods": {"kernels", "methods", *NOUNS},
    "adapters": {"kernels", "adapters", "cost", "groups", "pipeline", "provenance", "stopwatch", *NOUNS},
}
FOREIGN = {
    "kernels": {"torch", "triton"},
    "tokenreduce/methods": {"torch"},
    "adapters": {"torch", "transformers", "timm", "open_clip"},
    "adapters/upstream": {"torch", "transformers", "timm", "open_clip", "lmms_eval"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_they_may(room):
    files = [path for path in sorted((ROOT / room).rglob("*.py")) if path.name != "__init__.py"]
    assert files
    for path in files:
        for name in imports(path):
            head, _, rest = name.partition(".")
            if head == "tokenreduce":
                assert rest.partition(".")[0] in ALLOWED[room] | {""}, f"{path.name} imports {name}"
            elif head in ("torch", "triton", "transformers", "timm", "open_clip", "lmms_eval"):
                own = FOREIGN.get(str(path.parent.relative_to(ROOT)), FOREIGN[room])
                assert head in own, f"{path.name} imports {name}"


def test_adapters_know_no_method_and_methods_no_family():
    methods = {p.stem for p in (ROOT / "tokenreduce/methods").glob("*.py")} - {"__init__", "random", "pool", "uniform"}
    for path in (ROOT / "adapters").glob("*.py"):
        words = set(path.read_text().lower().replace("(", " ").replace('"', " ").split())
        assert not words & methods, f"{path.name} names a method"


def test_evaluation_uses_the_public_interface_only():
    for path in (ROOT / "eval").rglob("*.py"):
        inner = {n for n in imports(path) if n.startswith("tokenreduce.") and not n.startswith("tokenreduce.eval")}
        if path.parent.name == "ops":  # what a method is made of, measured piece by piece
            inner = {n for n in inner if not n.startswith(("tokenreduce.kernels.", "tokenreduce.methods."))}
        inner.discard("tokenreduce.adapters.upstream.lmms_eval")  # where lmms-eval is entered
        assert inner <= {f"tokenreduce.{public}" for public in ("cost", "draw", "timing", *NOUNS)}, path


def test_files_stay_small():
    for room in ("tokenreduce", "adapters", "kernels", "eval", "tests"):
        for path in (ROOT / room).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400 or room == "tests", f"{path} has a second room in it"
