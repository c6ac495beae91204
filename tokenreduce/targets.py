"""The budget that follows from a wish: so many times as fast, so large a share of the FLOPs, so many milliseconds."""

from __future__ import annotations

import dataclasses
import logging
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tokenreduce.attachment import attached, is_wrapped, report
from tokenreduce.measurements import conditions, known, measured_file, note
from tokenreduce.registry import make

if TYPE_CHECKING:
    from torch import nn

    from tokenreduce.cost import Report
    from tokenreduce.method import Method

log = logging.getLogger(__name__)
REPEATS = 3  # timed rounds per budget tried
WISHES = {
    "speedup": (1.0, math.inf, "at least 1", "2.0"),
    "flops": (0.0, 1.0, "in (0, 1]", "0.4"),
    "prefill_ms": (0.0, math.inf, "above 0", "50"),
}


@dataclass(frozen=True)
class Target:
    """One of ``speedup``, ``flops`` and ``prefill_ms``; ``measured``: by the clock instead of by FLOPs.

    Errors: ``TypeError`` unless exactly one is given, a number; ``ValueError`` where it is out of range.
    """

    speedup: float | None = None
    flops: float | None = None
    prefill_ms: float | None = None
    measured: bool = False

    def __post_init__(self) -> None:
        wishes = {name: value for name in WISHES if (value := getattr(self, name)) is not None}
        if len(wishes) != 1:
            said = " and ".join(f"{name}={value!r}" for name, value in wishes.items()) or "nothing"
            raise TypeError(
                f"{said} is asked for; allowed: one of speedup (such as 2.0), flops (share of the prefill's, such as 0.4) and "
                "prefill_ms (such as 50)"
            )
        ((name, value),) = wishes.items()
        low, high, words, example = WISHES[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(
                f"{name}={value!r} is a {type(value).__name__}; allowed: a number {words}, such as {example}"
            )
        if not low <= value <= high or value in (0, math.inf):
            raise ValueError(f"{name}={value!r}; allowed: a number {words}, such as {example}")
        if self.measured and self.flops is not None:
            raise TypeError("measured=True with flops: FLOPs are counted, not timed; allowed: speedup or prefill_ms")

    def __str__(self) -> str:
        name = next(name for name in WISHES if getattr(self, name) is not None)
        return f"{name}={getattr(self, name):g}" + (" measured" if self.measured else "")


def budget_for(
    model: nn.Module,
    inputs: Any,
    method: str | Method | type[Method],
    *,
    speedup: float | None = None,
    flops: float | None = None,
    prefill_ms: float | None = None,
    measured: bool = False,
    images_as_video: bool = False,
    **parameters: Any,
) -> float:
    """The largest ``keep``, a fraction, with which ``method`` meets one wish on this model and this prompt.

    The prompt runs under a few budgets, and what each costs is counted as ``tr.report`` counts: in every layer, for every image
    of the batch. A prompt of another size may need another budget.

    Args:
        model: not wrapped.
        inputs: what the model is called with: a mapping, or the pixels of a vision tower by itself.
        method: name, class or instance; ``parameters`` are its own, but for ``keep``.
        speedup: how many times as fast the first token is to come, at least 1: by the FLOPs of tower, projector and prefill.
        flops: share of the decoder's prefill FLOPs allowed, in (0, 1]; of a vision tower by itself, of its own.
        prefill_ms: milliseconds allowed for the decoder's prefill: the unreduced one is timed here, and shrinks as its FLOPs do.
        measured: time the budgets on this device instead of counting, with all that FLOPs leave out, and noise. Times are
            kept in the user's cache, by model, device, dtype, shapes and method; ``tr.clear_measured()`` forgets them.
        images_as_video: as in ``tr.wrap``.

    Errors: ``TypeError`` / ``ValueError`` for anything but one wish in its range, for one that the smallest budget does not
        meet (with what can be had), a model that is wrapped, inputs without a picture, and what ``tr.wrap`` raises.

    Example: ``keep = tr.budget_for(model, inputs, "hiprune", speedup=2.0)``, then ``tr.wrap(model, "hiprune", keep=keep)``
    """
    target = Target(speedup, flops, prefill_ms, measured)
    if "keep" in parameters:
        raise TypeError(f"keep={parameters['keep']!r} beside {target}: that is what is looked for; leave keep out")
    if is_wrapped(model):
        raise ValueError(
            "model is wrapped; call tr.unwrap(model) first, then tr.budget_for, then tr.wrap with its answer"
        )
    return solved(target, model, inputs, make(method, **parameters), images_as_video)


def wished(
    methods: Sequence[Method], parameters: Mapping[str, Any], inputs: Any, *, measured: bool, **wishes: float | None
) -> Target | None:
    """What ``wrap`` is asked for in place of a budget; None for nothing.

    Errors: those of ``Target``; ``TypeError`` where no prompt is given, or several methods or a budget beside it.
    """
    if measured is False and inputs is None and not any(value is not None for value in wishes.values()):
        return None
    target = Target(**wishes, measured=measured)
    if len(methods) > 1:
        raise TypeError(f"{target} for {len(methods)} methods: how they share it is yours to say; give each its keep")
    if "keep" in parameters:
        raise TypeError(f"keep={parameters['keep']!r} beside {target}: give one of them")
    if inputs is None:
        raise TypeError(
            f"{target} is reached on a prompt, and none is given; for example tr.wrap(model, {methods[0].name!r}, {target}, "
            "inputs=processor(...)), a prompt like those to come"
        )
    return target


def solved(target: Target, model: nn.Module, inputs: Any, method: Method, images_as_video: bool = False) -> float:
    """As ``budget_for``, of an instance."""
    asked = _Asked(model, inputs, method, images_as_video)
    k = _largest(lambda k: asked.margin(target, k), asked.most)
    if k is None or k in asked.refused:
        raise ValueError(f"{target} cannot be had with {method.name!r} on this prompt: {asked.why_not(target, k)}")
    return k / asked.most


def _largest(margin: Callable[[int], float], n: int) -> int | None:
    """The largest k in [1, ``n``] whose ``margin``, which falls with k, is at least 1; None where none is.

    Guesses where 1 / margin, a cost nearly linear in k, reaches 1, and halves what is left where a guess helped little.
    """
    high_cost = 1 / margin(n)
    if high_cost <= 1:
        return n
    low_cost = 1 / max(margin(1), 1e-9)
    if low_cost > 1:
        return None
    low, high, halve = 1, n, False
    while high - low > 1:
        guess = low + round((high - low) * (1 - low_cost) / (high_cost - low_cost))
        k = (low + high) // 2 if halve else min(max(guess, low + 1), high - 1)
        width, cost = high - low, 1 / max(margin(k), 1e-9)
        low, low_cost, high, high_cost = (k, cost, high, high_cost) if cost <= 1 else (low, low_cost, k, cost)
        halve = not halve and high - low > width // 2
    return low


class _Asked:
    """One prompt, under budgets of k of ``most`` tokens."""

    def __init__(self, model: nn.Module, inputs: Any, method: Method, images_as_video: bool) -> None:
        self.model, self.inputs, self.method, self.images_as_video = model, inputs, method, images_as_video
        self.margins: dict[int, float] = {}
        self.refused: dict[int, str] = {}  # budgets too small for the method, and what it says
        self.whole = self.under(1, 1)
        self.most = max((n for row in self.whole.tokens_in for n in row), default=0)
        if not self.most:
            raise ValueError(
                "inputs hold no picture, so there is nothing to reduce; give a prompt as the model will see it"
            )

    def arm(self, k: int, n: int) -> AbstractContextManager[None]:
        keep: dict[str, Any] = {"keep": k / n}
        return attached(self.model, [dataclasses.replace(self.method, **keep)], self.images_as_video)

    def under(self, k: int, n: int) -> Report:
        import torch

        with self.arm(k, n), torch.inference_mode():
            if isinstance(self.inputs, Mapping):
                self.model(**self.inputs)
            else:
                self.model(self.inputs)
            return report(self.model)

    def margin(self, target: Target, k: int) -> float:
        """How many times as much as ``k`` tokens take is allowed: 1 and more meet the wish, as does what is too small to run."""
        try:
            self.margins[k] = found = self.clocked(target, k) if target.measured else self.counted(target, k)
        except ValueError as error:
            self.refused[k] = str(error)
            return math.inf
        return found

    def why_not(self, target: Target, k: int | None) -> str:
        smallest, best = min(self.margins.items())
        value = getattr(target, name := str(target).partition("=")[0])
        had = value * best if name == "speedup" else value / best
        floor = f" ({self.refused[k]})" if k is not None else ""
        return (
            f"{smallest} of {self.most} tokens{floor} give {name}={had:.3g}. What the method does not shorten takes the rest; "
            "ask for less, or take a method that acts earlier (tokenreduce methods --for MODEL)"
        )

    def counted(self, target: Target, k: int) -> float:
        found = self.under(k, self.most)
        if target.speedup is not None:
            return found.speedup / target.speedup
        share = found.flops / found.flops_unreduced
        allowed = target.flops if target.flops is not None else (target.prefill_ms or 0) / self.prefill_ms
        return allowed / share

    def clocked(self, target: Target, k: int) -> float:
        name = "speedup" if target.prefill_ms is None else "prefill_ms"
        question = {"what": name, "kept": k, "tokens_in": self.whole.tokens_in, **self.conditions}
        found = known(question)
        if found is None:
            note(question, found := self.timed(name, k))
        else:
            log.info("%s of %d tokens is known: %.4g, from %s", name, k, found, measured_file())
        return target.prefill_ms / found if target.prefill_ms is not None else found / (target.speedup or 1)

    def timed(self, name: str, k: int) -> float:
        """``prefill_ms`` with ``k`` tokens, or the ``speedup`` of the whole pass."""
        from tokenreduce.timing import time_prefill

        arms = {"whole": nullcontext, "less": lambda: self.arm(k, self.most)}
        laps = time_prefill(self.model, self.inputs, arms, REPEATS, by_stage=name == "prefill_ms")
        if name == "prefill_ms":
            return statistics.median(lap.seconds["prefill"] for lap in laps["less"]) * 1e3
        return statistics.median(a.total_s / b.total_s for a, b in zip(laps["whole"], laps["less"], strict=True))

    @cached_property
    def conditions(self) -> dict[str, Any]:
        return {**conditions(self.model, self.inputs, self.method), "images_as_video": self.images_as_video}

    @cached_property
    def prefill_ms(self) -> float:
        """Of the unreduced model."""
        from tokenreduce.timing import time_prefill

        laps = time_prefill(self.model, self.inputs, {"whole": nullcontext}, REPEATS, by_stage=True)["whole"]
        return statistics.median(lap.seconds["prefill"] for lap in laps) * 1e3
