"""Visual token reduction for vision-language models: wrap any current model in one call, undo it in one call.

>>> import tokenreduce as tr
>>> # model = tr.wrap(model, "hiprune", keep=1/3); model.generate(**inputs); tr.report(model); tr.unwrap(model)
"""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "setup.cfg").is_file() and (_checkout / "adapters").is_dir():
    # in a checkout the rooms adapters, kernels and eval stand beside this folder, in a wheel inside it
    __path__.append(str(_checkout))

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenreduce.adapters.upstream.joint_space import text_tower
    from tokenreduce.attachment import is_wrapped, report, trace
    from tokenreduce.budgets import Budget
    from tokenreduce.calibration import Calibration
    from tokenreduce.cost import Report
    from tokenreduce.draw import compare, draw, explore
    from tokenreduce.explanation import explain
    from tokenreduce.layout import Layout
    from tokenreduce.learned_method import LearnedMethod
    from tokenreduce.measurements import clear_measured
    from tokenreduce.method import Method, Step
    from tokenreduce.methods.aim import AIM
    from tokenreduce.methods.cdpruner import CDPruner
    from tokenreduce.methods.dart import DART
    from tokenreduce.methods.dymu import DyMU
    from tokenreduce.methods.dyvte import DyVTE
    from tokenreduce.methods.evit import EViT
    from tokenreduce.methods.expediting import Expediting
    from tokenreduce.methods.fastervlm import FasterVLM
    from tokenreduce.methods.fastv import FastV
    from tokenreduce.methods.gtp import GTP
    from tokenreduce.methods.hiprune import HiPrune
    from tokenreduce.methods.holitom import HoliTom
    from tokenreduce.methods.learned_selector import LearnedSelector
    from tokenreduce.methods.mustdrop import MustDrop
    from tokenreduce.methods.pitome import PiToMe
    from tokenreduce.methods.pool import Pool
    from tokenreduce.methods.promptdistill import PromptDistill
    from tokenreduce.methods.pyramiddrop import PyramidDrop
    from tokenreduce.methods.query_compressor import QueryCompressor
    from tokenreduce.methods.random import Random
    from tokenreduce.methods.sparsevlm import SparseVLM
    from tokenreduce.methods.tempme import TempMe
    from tokenreduce.methods.tome import ToMe
    from tokenreduce.methods.uniform import Uniform
    from tokenreduce.methods.videollm_mod import VideoLLMMoD
    from tokenreduce.model_facts import ModelFacts
    from tokenreduce.picture_selection import selection
    from tokenreduce.prompts import prompt_length, question
    from tokenreduce.reduction import Reduction
    from tokenreduce.scaling import ScaledDown, scaled_down
    from tokenreduce.streams import Stream, stream
    from tokenreduce.tables import Table, families, refused
    from tokenreduce.targets import budget_for
    from tokenreduce.tested import versions
    from tokenreduce.threshold_search import calibrate
    from tokenreduce.tokens import VisualTokens
    from tokenreduce.traces import Trace, load_trace
    from tokenreduce.training import Trained, train
    from tokenreduce.training_settings import TrainingSettings
    from tokenreduce.visual_exits import exit_layers
    from tokenreduce.weights import Weights
    from tokenreduce.wrapping import budget, unwrap, wrap, wrapped

    methods: Callable[..., Table]

__version__ = "0.1.0"

_HOME = {
    "Budget": "budgets",
    "Report": "cost",
    "Method": "method",
    "ModelFacts": "model_facts",
    "Step": "method",
    "explore": "draw.explorer",
    "families": "tables",
    "Layout": "layout",
    "Reduction": "reduction",
    "VisualTokens": "tokens",
    "Trace": "traces",
    "budget": "wrapping",
    "budget_for": "targets",
    "Calibration": "calibration",
    "LearnedMethod": "learned_method",
    "Weights": "weights",
    "calibrate": "threshold_search",
    "clear_measured": "measurements",
    "check_method": "eval.method_check",
    "doctor": "eval.doctor",
    "exit_layers": "visual_exits",
    "explain": "explanation",
    "prompt_length": "prompts",
    "question": "prompts",
    "refused": "tables",
    "compare": "draw.comparison",
    "is_wrapped": "attachment",
    "load_trace": "traces",
    "ScaledDown": "scaling",
    "scaled_down": "scaling",
    "selection": "picture_selection",
    "report": "attachment",
    "Stream": "streams",
    "stream": "streams",
    "text_tower": "adapters.upstream.joint_space",
    "trace": "attachment",
    "train": "training",
    "TrainingSettings": "training_settings",
    "unwrap": "wrapping",
    "versions": "tested",
    "wrap": "wrapping",
    "wrapped": "wrapping",
}


def __getattr__(name: str) -> Any:
    """Import on first use: ``import tokenreduce`` itself stays light. Method classes are found by their own name."""
    if name in ("draw", "methods"):  # folders that can be called: one draws, the other lists itself
        return _import_module(f"tokenreduce.{name}")
    if name in _HOME:
        return getattr(_import_module(f"tokenreduce.{_HOME[name]}"), name)
    if not name.startswith("_") and name[:1].isupper():
        from tokenreduce.registry import registry

        for cls in registry().values():
            if cls.__name__ == name:
                return cls
    raise AttributeError(f"module 'tokenreduce' has no attribute {name!r}")


def __dir__() -> list[str]:
    from tokenreduce.registry import registry

    return sorted([*_HOME, "draw", "methods", *(cls.__name__ for cls in registry().values()), "__version__"])
