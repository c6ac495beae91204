"""The contracts of ``docs/architecture.md`` as questions to one method on one tiny model. The contract tests ask them, too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tokenreduce as tr
from tokenreduce.eval import tiny_models
from tokenreduce.eval.doctor.shortened import caught, logits
from tokenreduce.eval.doctor.stages import left
from tokenreduce.method import Method
from tokenreduce.reduction import Reduction
from tokenreduce.tokens import VisualTokens

TOLERANCE = 1e-4  # float32; a batch rounds otherwise than its samples, and now and then a norm makes much of it
SHORTENED = 1e-3  # the bare model runs on eager attention, on another layout of the same numbers
STEPS = 3  #: tokens written


class Broken(AssertionError):
    """A contract does not hold: what was seen, and what to do."""


class Skipped(Exception):
    """A contract that could not be tried, and why."""


@dataclass
class Setting:
    """A method, the tiny model ``key`` to wrap, after a first call, the same one left bare, and a batch of prompts.

    ``writes``: whether tokens are written and compared, too, besides logits.
    """

    key: str
    method: Method
    model: Any
    bare: Any
    case: tiny_models.Case
    writes: bool = True

    def __post_init__(self) -> None:
        self.untouched = self.state()

    def state(self) -> list[Any]:
        """What could be left on the model: hooks, attributes, entries of its state dict."""
        modules = self.model.named_modules()
        return [
            [(name, len(m._forward_hooks), len(m._forward_pre_hooks), set(vars(m))) for name, m in modules],
            list(self.model.state_dict()),
        ]

    def wrote(self, inputs: dict[str, Any], **more: Any) -> list[list[int]]:
        if not self.writes:
            return []
        new = self.model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, **more)
        return new[:, -STEPS:].tolist()


@torch.no_grad()
def full_budget_changes_nothing(s: Setting) -> None:
    try:
        full = dataclasses.replace(s.method, keep=1.0)
    except (TypeError, ValueError) as error:
        raise Skipped(f"keep=1.0 beside its other parameters is refused: {error}") from None
    plain, written = s.model(**s.case.inputs).logits, s.wrote(s.case.inputs)
    with tr.wrapped(s.model, full):
        same = torch.equal(s.model(**s.case.inputs).logits, plain) and s.wrote(s.case.inputs) == written
        report = tr.report(s.model)
    if not same or report.tokens_kept != report.tokens_in:
        raise Broken(
            f"keep=1.0 leaves {report.tokens_kept} of {report.tokens_in} tokens and changes outputs; a full budget must be the "
            "identity, so is_identity(n) has to be true where budget.count(n) >= n"
        )


@torch.no_grad()
def text_is_untouched(s: Setting) -> None:
    inputs = tiny_models.inputs(s.key, "text", s.model)
    plain = s.model(**inputs).logits
    with tr.wrapped(s.model, s.method):
        if not torch.equal(s.model(**inputs).logits, plain):
            raise Broken("a prompt without a picture has other logits; reduce must touch the tokens it is shown only")


@torch.no_grad()
def budget_is_filled_exactly(s: Setting) -> None:
    if not s.method.shortens:
        raise Skipped("what is left is not said by keep")
    with tr.wrapped(s.model, s.method):
        s.model(**s.case.inputs)
        images = tr.trace(s.model).images
    theirs = [image for image in images if image.layout.medium not in s.method.media]
    mine = [image for image in images if all(image is not other for other in theirs)]
    if not any(len(stage.source) < image.tokens_in for image in mine for stage in image.stages):
        raise Broken(
            f"keep={s.method.keep!r} leaves every token of every picture; reduce must fill self.budget.count(n)"
        )
    if s.method.budget.is_full:
        raise Skipped(f"keep={s.method.keep!r} is no count of tokens; other parameters decide")
    for image in mine:
        at, n, k = image.stages, image.tokens_in, len(image.stages[-1].source) if image.stages else image.tokens_in
        if len(at) > 1 and at[0].stage != "encoder":
            raise Skipped("it acts in several steps: what each of them leaves is its own")
        least = s.method.always_left(image.layout)
        wanted = max(s.method.budget.count(n), least)
        if type(s.method).most is Method.most and k != wanted:
            raise Broken(
                f"{k} of {n} tokens of a picture are left where keep={s.method.keep!r} means {wanted}; take "
                "k = self.budget.count(tokens.num_tokens), or plan as many merges (at='encoder') as reach it"
            )
        most = max(s.method.most(n), least)
        if k > most:
            raise Broken(f"{k} of {n} tokens of a picture are left; most({n}) and always_left(layout) allow {most}")


@torch.no_grad()
def equals_the_shortened_sequence(s: Setting) -> None:
    """Logits of the bare model on a sequence cut down, and averaged, as the trace says."""
    if s.method.positions != "keep" or s.method.policy != "keep":
        raise Skipped("position ids are renumbered; try it with positions='keep'")
    watched, plans = watching(s.method)
    with tr.wrapped(s.model, watched):
        passed, trace = s.model(**s.case.inputs).logits, tr.trace(s.model)
    if any(stage.stage == "encoder" for image in trace.images for stage in image.stages):
        raise Skipped("it merges inside the vision tower, where no shorter sequence of the decoder says what is right")
    if any(stage in ("llm", "cache") and plan.merges for stage, plan in plans):
        raise Skipped("it merges inside the language model, where the trace does not hold the values of a row")
    if any(plan.features is not None or not even(plan.weight) for _, plan in plans):
        raise Skipped("its rows are not plain means of tokens, and the trace holds no weights")
    given = caught(s.bare, s.case.inputs, generate=False)
    given = averaged(given, trace)
    for sample, columns in enumerate(left(trace, s.case.inputs["attention_mask"], s.case.inputs["input_ids"].shape[1])):
        last = columns.at[max(columns.at)] if columns.at else columns.entered
        expected = logits(s.bare, s.case.inputs, given, sample, columns)
        worst = (passed[sample, last] - expected).abs().max().item()
        if not worst <= SHORTENED:
            raise Broken(
                f"logits of sample {sample} differ by {worst:.2g} from those of the sequence that is really shorter; source must "
                "name the token at which a row sits, assign the row of every token"
            )


def watching(method: Method) -> tuple[Method, list[tuple[str, Reduction]]]:
    """The same method, and its plans with their stages as they come."""
    plans: list[tuple[str, Reduction]] = []

    class Watched(type(method), register=False):  # type: ignore[misc, call-arg]
        def reduce(self, tokens: VisualTokens) -> Reduction:
            plan = super().reduce(tokens)
            plans.append((tokens.stage, plan))
            return plan

    return Watched(**{f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.init}), plans


def even(weight: Tensor | None) -> bool:
    return weight is None or bool((weight == weight.flatten()[:1]).all())


def averaged(given: dict[str, Any], trace: tr.Trace) -> dict[str, Any]:
    """What the decoder is handed, each row that enters it being the mean of the tokens it stands for, at its place."""
    embeds, ids = given["inputs_embeds"].clone(), given.get("position_ids")
    if ids is None:
        ids = torch.arange(embeds.shape[1]).expand(embeds.shape[:2])
    placed = ids.expand(*ids.shape[:-2], *embeds.shape[:2]).clone()
    for image in trace.images:
        stage = image.reached(-1)
        if stage is None:
            continue
        for row, (seat, source) in enumerate(zip(stage.seats, stage.source)):
            members = image.columns[stage.assign == row]
            embeds[image.sample, seat] = given["inputs_embeds"][image.sample, members].mean(dim=0)
            if source >= 0:
                placed[..., image.sample, seat] = ids.expand(placed.shape)[..., image.sample, image.columns[source]]
    return {**given, "inputs_embeds": embeds, "position_ids": placed}


@torch.no_grad()
def batch_equals_its_samples(s: Setting) -> None:
    with tr.wrapped(s.model, s.method):
        together, written = s.model(**s.case.inputs).logits, s.wrote(s.case.inputs)
        for b, real in enumerate(s.case.inputs["attention_mask"].bool()):
            alone = tiny_models.alone(s.key, s.case, b)
            own = together[b][real] if together.shape[1] == len(real) else together[b]  # an answer has its own columns
            worst = (own - s.model(**alone).logits[0]).abs().max().item()
            if not worst <= TOLERANCE:
                raise Broken(
                    f"logits of sample {b} differ by {worst:.2g} from those of the same sample alone; an image's plan must not "
                    "depend on the others of its batch"
                )
            if s.wrote(alone) != written[b : b + 1]:
                raise Broken(f"sample {b} writes {written[b]} in a batch and {s.wrote(alone)[0]} alone")


@torch.no_grad()
def cache_changes_nothing(s: Setting) -> None:
    if "cache" in s.method.stages:
        raise Skipped("it trims the cache; without one a model goes on seeing what the cache would forget")
    with tr.wrapped(s.model, s.method):
        cached = s.wrote(s.case.inputs)
        try:
            uncached = s.wrote(s.case.inputs, use_cache=False)
        except ValueError as error:
            raise Skipped(f"generation without a cache is refused: {error}") from None
    if cached != uncached:
        raise Broken(
            f"writes {cached} with a cache and {uncached} without; a plan must follow from what it is shown alone"
        )


@torch.no_grad()
def nothing_is_left(s: Setting) -> None:
    plain = s.model(**s.case.inputs).logits
    with tr.wrapped(s.model, s.method):
        s.model(**s.case.inputs)
    if s.state() != s.untouched or not torch.equal(s.model(**s.case.inputs).logits, plain):
        raise Broken(
            "the model is not what it was before tr.wrap; keep what a call needs in the Reduction, not on modules"
        )


CONTRACTS: dict[str, Callable[[Setting], None]] = {
    "a full budget changes no bit": full_budget_changes_nothing,
    "text alone is untouched": text_is_untouched,
    "the budget is filled exactly": budget_is_filled_exactly,
    "equals the sequence that is really shorter": equals_the_shortened_sequence,
    "a batch equals its samples": batch_equals_its_samples,
    "with a cache as without": cache_changes_nothing,
    "nothing is left after unwrap": nothing_is_left,
}
