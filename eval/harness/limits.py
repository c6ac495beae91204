"""What lmms-eval's models cannot do, found out before one is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenreduce.budgets import Budget

#: models of lmms-eval that answer one prompt at a time
ONE_AT_A_TIME = ("llava_hf", "internvl_hf")

LIKELIHOODS = ("loglikelihood", "multiple_choice")
MEASURED = "generate_until"  # the output type that is measured: one answer per question


def check_batch_size(base: str, batch_size: Any) -> None:
    """Raise ``ValueError`` where lmms-eval's model ``base`` takes no such batches."""
    if base in ONE_AT_A_TIME and str(batch_size) != "1":
        raise ValueError(
            f"batch_size={batch_size!r}; lmms-eval's {base} answers one prompt at a time; allowed: 1. Leave --batch-size "
            "out, or name another base model: --base in a sweep, tr_base in --model_args"
        )


def check_likelihoods(outlines: Mapping[str, Mapping[str, Any]], base: str) -> None:
    """Raise ``ValueError`` for a task that asks for likelihoods of given answers, which ``base`` does not tell.

    ``outlines``: what the tasks' YAML files say, by task.
    """
    for task, about in outlines.items():
        if about["output_type"] in LIKELIHOODS:
            raise ValueError(
                f"task {task} asks how likely given answers are (output_type: {about['output_type']}), and lmms-eval's {base} "
                "does not tell: requests to its chat class are for generation only, and its simple class does not implement "
                "them, or counts the picture's tokens as the answer; allowed: output_type: generate_until. Take the task's "
                "variant that asks for the option's letter, or write one with the options in doc_to_text"
            )


def check_measured(outlines: Mapping[str, Mapping[str, Any]], base: str) -> None:
    """The same, and for a task that does not generate once per question: a sweep has no costs for it."""
    check_likelihoods(outlines, base)
    for task, about in outlines.items():
        if about["output_type"] != MEASURED:
            raise ValueError(
                f"task {task} does not generate once per question (output_type: {about['output_type']}), and only that is "
                f"measured; allowed: output_type: {MEASURED}. lmms_eval --model tokenreduce evaluates it without costs"
            )


def check_fixed(number: int | None, processor: str, budget: Budget) -> None:
    """Raise ``ValueError`` for pictures to be scaled down where ``processor`` makes one ``number`` of tokens of all."""
    if number is not None and budget.count(number) < number:
        raise ValueError(
            f"downscale keep={budget.keep}: {processor} makes {number} visual tokens of every picture, whatever its size, so "
            "scaling it down saves nothing; allowed: models of dynamic resolution, such as Qwen-VL, LLaVA-NeXT and InternVL. "
            "pool averages tokens to any count inside the model"
        )
