"""Who may import whom, as docs/architecture.md says."""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOUNS = {
    "attention_rows",
    "block_signals",
    "budgets",
    "cache_codec",
    "calibration",
    "joint_space",
    "learned_method",
    "learned_module",
    "mixing",
    "projection",
    "layout",
    "method",
    "model_facts",
    "reduction",
    "signals",
    "tokens",
    "training_step",
    "uploading",
    "weights",
}
ALLOWED = {
    "kernels": {"kernels"},
    "tokenreduce/methods": {
        "allotment",
        "anchor_merging",
        "bilevel_cache",
        "block_schedule",
        "anchors_and_registers",
        "by_count",
        "channel_coding",
        "energy_merging",
        "exit_labels",
        "k_medoids",
        "kernels",
        "matching",
        "methods",
        "novelty",
        "outlier_absorption",
        "place_controls",
        "predictive_coding",
        "principal_groups",
        "projector_rows",
        "redundancy_trees",
        "relaxed_selection",
        "schedules",
        "segment_stream",
        "soft_clusters",
        "temporal_redundancy",
        "text_attention",
        "text_raters",
        "text_relevance",
        "threshold_merging",
        "token_rectangles",
        "tower_saliency",
        "validation",
        "video_segments",
        "whole_frames",
        "window_merging",
        *NOUNS,
    },
    "adapters": {
        "kernels",
        "adapters",
        "cost",
        "encoder_steps",
        "flops",
        "groups",
        "per_thread",
        "picture_selection",
        "pipeline",
        "provenance",
        "stopwatch",
        "traces",
        *NOUNS,
    },
}
FOREIGN = {
    "kernels": {"torch", "triton"},
    "tokenreduce/methods": {"torch"},
    "adapters": {"torch", "transformers", "timm", "open_clip"},
    "adapters/upstream": {"torch", "transformers", "timm", "open_clip", "lmms_eval", "vllm"},
    "adapters/serving/vllm": {"torch", "transformers", "vllm"},
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
            elif head in ("torch", "triton", "transformers", "timm", "open_clip", "lmms_eval", "vllm"):
                own = FOREIGN.get(str(path.parent.relative_to(ROOT)), FOREIGN[room])
                assert head in own, f"{path.name} imports {name}"


def test_adapters_know_no_method_and_methods_no_family():
    methods = {p.stem for p in (ROOT / "tokenreduce/methods").glob("*.py")} - {
        "__init__",
        "random",
        "pool",
        "uniform",
        "first",
        "border",
    }
    for path in (ROOT / "adapters").rglob("*.py"):
        words = set(path.read_text().lower().replace("(", " ").replace('"', " ").split())
        assert not words & methods, f"{path.name} names a method"


def test_evaluation_uses_the_public_interface_only():
    for path in (ROOT / "eval").rglob("*.py"):
        inner = {n for n in imports(path) if n.startswith("tokenreduce.") and not n.startswith("tokenreduce.eval")}
        if path.parent.name == "ops":  # what a method is made of, measured piece by piece
            inner = {
                n
                for n in inner
                if not n.startswith(("tokenreduce.kernels.", "tokenreduce.matching", "tokenreduce.methods."))
            }
        # where libraries are entered, and what is said when one does not fit
        inner -= {
            f"tokenreduce.adapters.upstream.{name}"
            for name in ("attention", "lmms_eval", "lmms_eval_run", "processors", "seams")
        }
        assert inner <= {
            f"tokenreduce.{public}"
            for public in (
                "cost",
                "downscale",
                "draw",
                "files",
                "own_methods",
                "picture_tokens",
                "pictures",
                "registry",
                "scaling",
                "tables",
                "timing",
                "unreduced",
                *NOUNS,
            )
        }, path


@pytest.mark.parametrize(
    ("room", "stranger"),
    [
        ("families", "hooks"),
        ("encoders", "hooks"),
        ("upstream", "hooks"),
        ("upstream", "families"),
        ("hooks", "families"),
    ],
)
def test_rooms_of_adapters_know_only_what_is_below_them(room, stranger):
    shared = {"tokenreduce.adapters.families.base"}  # what every family tells
    for path in (ROOT / "adapters" / room).glob("*.py"):
        known = {n for n in imports(path) if n.startswith(f"tokenreduce.adapters.{stranger}")} - shared
        assert not known, f"{path.name} imports {known}"


def modules() -> dict[str, Path]:
    """Every file of the package by the name it is imported under."""
    found = {}
    for room in ("tokenreduce", "adapters", "kernels", "eval"):
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if room == "tokenreduce" else ("tokenreduce", *parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_by(path: Path, name: str, known: dict[str, Path]) -> Iterator[str]:
    """The modules that the file of module ``name`` imports by name, in functions and for type checking, too.

    The packages around a module, which Python runs on the way to it, are not counted: what is public is gathered in them.
    """
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield from [name for name in (f"{base}.{alias.name}", base) if name in known][:1]


def way_back(graph: dict[str, set[str]], start: str) -> list[str]:
    """The shortest circle of imports through ``start``, from it to itself; empty where there is none."""
    came_from, todo = {}, deque([start])
    while todo:
        here = todo.popleft()
        for there in sorted(graph[here] - came_from.keys()):
            came_from[there] = here
            todo.append(there)
    if start not in came_from:
        return []
    way = [start, came_from[start]]
    while way[-1] != start:
        way.append(came_from[way[-1]])
    return way[::-1]


def test_a_circle_is_found_wherever_the_import_stands(tmp_path):
    texts = {
        "p.a": "def f():\n    from p import b\n",
        "p.b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.c import x\n",
        "p.c": "from .a import y\nimport p.d\n",
        "p.d": "import p\n",
        "p": "from p.d import z\n",
    }
    known = {name: tmp_path / ("__init__.py" if name == "p" else f"{name[2:]}.py") for name in texts}
    for name, path in known.items():
        path.write_text(texts[name])
    graph = {name: set(imported_by(path, name, known)) for name, path in known.items()}
    assert graph == {"p.a": {"p.b"}, "p.b": {"p.c"}, "p.c": {"p.a", "p.d"}, "p.d": {"p"}, "p": {"p.d"}}
    assert way_back(graph, "p.a") == ["p.a", "p.b", "p.c", "p.a"]
    assert way_back(graph, "p.d") == ["p.d", "p", "p.d"]
    assert way_back({**graph, "p.c": set()}, "p.a") == []


def test_no_two_files_import_each_other_in_a_circle():
    known = modules()
    graph = {name: set(imported_by(path, name, known)) for name, path in known.items()}
    assert len(known) > 100
    assert {name: way for name in known if (way := way_back(graph, name))} == {}


def test_files_stay_small():
    for room in ("tokenreduce", "adapters", "kernels", "eval", "benchmarks"):
        for path in (ROOT / room).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 250, f"{path} has a second room in it"


# names by which transformers, timm, open_clip and lmms-eval are held where no documentation promises them
SEAMS = (
    "_attn_implementation",
    "ALL_ATTENTION_FUNCTIONS",
    "AttentionInterface",
    "LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING",
    "attn_logit_softcapping",
    "create_causal_mask",
    "cu_seq_lens_q",
    "deepstack_features",
    "deepstack_visual_embeds",
    "eager_attention_forward",
    "mm_encoder_outputs",
    "past_key_values",
    "position_embeddings",
    "visual_pos_masks",
)
PRIVATE = (
    "transformers.cache_utils",
    "transformers.masking_utils",
    "transformers.modeling_utils",
    "transformers.models",
)


def test_seams_of_libraries_are_named_in_one_room():
    found = []
    for room in ("adapters", "tokenreduce", "eval"):
        for path in sorted((ROOT / room).rglob("*.py")):
            if path.is_relative_to(ROOT / "adapters/upstream") or path.parent.name in ("demo", "tiny_models"):
                continue  # models are built there, by their configurations
            for node in ast.walk(ast.parse(path.read_text())):
                word = (
                    node.value if isinstance(node, ast.Constant) else getattr(node, "attr", getattr(node, "id", None))
                )
                if word in SEAMS:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} names {word}")
            found += [f"{path.relative_to(ROOT)} imports {n}" for n in imports(path) if n.startswith(PRIVATE)]
    assert found == []
