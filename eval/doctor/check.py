"""One family at one stage: the wrapped model against the bare one on the sequence that is really shorter."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import tokenreduce as tr
from tokenreduce.eval import tiny_models

from . import entered_units
from .beside import shortened
from .shortened import Columns, caught, hooked, logits
from .stages import STAGES, left, merged_tower, methods, unread

Verdict = Literal["right", "refused", "wrong"]
STEPS = 3  #: tokens written
TOLERANCE = 1e-3  #: of float32 logits around 5; what is wrong is wrong by 0.05 and more


@dataclass(frozen=True)
class Check:
    """The ``verdict`` on ``family`` at ``stage``; ``detail`` says why it refused, or what was wrong."""

    family: str
    stage: str
    verdict: Verdict
    detail: str = ""
    seconds: float = 0.0


class Family:
    """The tiny models of a family: one to wrap, one left bare, on which masks can be cut down."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.model, self.bare = tiny_models.build(key), tiny_models.build(key, "eager")
        # two pictures beside one, and none; padded on the left
        self.inputs = tiny_models.inputs(key, "mixed", self.model)
        # inside a tower, patches that never become tokens are left alone: here there are none
        self.plain = tiny_models.case(key, "mixed", self.model, plain=True).inputs

    def checked(self, stage: str) -> Check:
        """How a method of ``stage`` fares; whatever it raises becomes part of the verdict."""
        begun = time.perf_counter()
        verdict: Verdict = "right"
        try:
            detail = self.difference(stage)
            verdict = "wrong" if detail else "right"
        except ValueError as error:
            verdict, detail = "refused", str(error)
        except Exception as error:
            ours = type(error).__name__ == "UpstreamChanged"
            verdict, detail = "refused" if ours else "wrong", f"{type(error).__name__}: {error}"
        finally:
            if tr.is_wrapped(self.model):
                tr.unwrap(self.model)
        return Check(self.key, stage, verdict, " ".join(detail.split()), time.perf_counter() - begun)

    def difference(self, stage: str) -> str:
        """What the wrapped model does otherwise than the shortened bare one; empty when nothing."""
        inputs = self.plain if stage == "encoder" else self.inputs
        with tr.wrapped(self.model, methods(self.key)[stage]):
            with torch.no_grad():
                passed, trace = self.model(**inputs).logits, tr.trace(self.model)
            new = self.model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
            read = tr.report(self.model).steps_read
        if not any(image.stages for image in trace.images) and sum(read.read) == sum(read.held):
            return "nothing was reduced"
        length = inputs["input_ids"].shape[1]
        for sample, (columns, expected) in enumerate(self.expected(stage, inputs, trace, length, generate=False)):
            last = columns.at[max(columns.at)] if columns.at else columns.entered
            worst = (passed[sample, last] - expected).abs().max().item()
            if not worst <= TOLERANCE:
                return f"logits of sample {sample} differ by {worst:.2g} from those of the shortened sequence"
        for step in range(STEPS):
            longer = tiny_models.follow(self.key, inputs, new[:, length : length + step])
            for sample, (_, expected) in enumerate(self.expected(stage, longer, trace, length, generate=True)):
                token, wanted = int(new[sample, length + step]), int(expected[-1].argmax())
                if token != wanted:
                    return f"token {step + 1} of sample {sample} is {token}, of the shortened sequence {wanted}"
        return ""

    def expected(
        self, stage: str, inputs: dict[str, Any], trace: tr.Trace, length: int, generate: bool
    ) -> list[tuple[Columns, Tensor]]:
        """Per sample the columns that enter, and the logits (T, V) of those that reach the last layer."""
        towers = {"pixels": entered_units.shortened, "encoder": merged_tower}
        with towers[stage](self.bare, trace) if stage in towers else hooked():
            given = caught(self.bare, inputs, generate)
        samples = left(trace, inputs["attention_mask"], length)
        samples = unread(trace, samples, length) if stage == "decode" else samples
        return [(columns, logits(self.bare, inputs, given, b, columns)) for b, columns in enumerate(samples)]


class Beside(Family):
    """The same where pictures are no columns of the decoder's sequence: every sample by itself, with fewer rows of them."""

    def difference(self, stage: str) -> str:
        case = tiny_models.case(self.key, "mixed", self.model)
        length = case.inputs["input_ids"].shape[1]
        with tr.wrapped(self.model, methods(self.key)[stage]), torch.no_grad():
            passed, trace = self.model(**case.inputs).logits, tr.trace(self.model)
            new = self.model.generate(**case.inputs, max_new_tokens=STEPS, do_sample=False)[:, -STEPS:]
        if not any(image.stages for image in trace.images):
            return "nothing was reduced"
        for b in range(len(new)):
            with shortened(self.key, self.bare, case, trace, b) as alone, torch.no_grad():
                expected = self.bare(**alone).logits[0]
                written = self.bare.generate(**alone, max_new_tokens=STEPS, do_sample=False)[0, -STEPS:]
            own = passed[b, case.inputs["attention_mask"][b].bool()] if passed.shape[1] == length else passed[b]
            worst = (own - expected).abs().max().item()
            if not worst <= TOLERANCE:
                return f"logits of sample {b} differ by {worst:.2g} from those with fewer rows of its pictures"
            if new[b].tolist() != written.tolist():
                return f"sample {b} writes {new[b].tolist()}, with fewer rows of its pictures {written.tolist()}"
        return ""


def checks(key: str) -> list[Check]:
    """Every stage of one family. A model that cannot even be built or run bare is wrong at every stage."""
    try:
        family = (Beside if key in tiny_models.BESIDE else Family)(key)
        with torch.no_grad():
            family.model(**family.inputs)
    except Exception as error:
        return [Check(key, stage, "wrong", f"bare model: {type(error).__name__}: {error}") for stage in STAGES]
    return [family.checked(stage) for stage in STAGES]
