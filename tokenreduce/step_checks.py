"""Whether a model can serve a step of a method, and whether a plan keeps to the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tokenreduce.block_signals import AttentionMap, BlockInput
from tokenreduce.cache_checks import check_cache_step
from tokenreduce.layer_checks import check_around_layer
from tokenreduce.layout import Layout
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.signals import (
    AttentionReceived,
    ClsAttention,
    ImageFingerprint,
    Keys,
    LastQueryAttention,
    Signal,
    Text,
    TowerPrefix,
    block_of,
)

NO_ENTRIES = "Its layers keep states or sliding windows, not an entry per token: leave "
WAYS_OUT = {
    "trims": f"{NO_ENTRIES}trimming out, as trim_cache=False or truncate=0 does",
    "codes": f"{NO_ENTRIES}it out",
}

#: what a step may say
WORDS = {"when": ("before", "middle", "after", "attention", "layer"), "prefix": ("keep", "mean")}
WORDS |= {"decode_ids": ("continue", "cache_length")}
DEEP = 1024  # blocks, more than any tower has, so that every block a user names is one of them


def check_method(method: Method, facts: ModelFacts) -> None:
    """Raise where no stage of ``method`` is offered, or its count exceeds the tokens of an image of fixed size."""
    n = facts.tokens_per_image
    if n is not None and isinstance(method.budget.keep, int) and method.budget.keep > n:
        raise ValueError(
            f"keep={method.keep} exceeds the {n} visual tokens of an image of this {facts.family} model; "
            f"allowed: an int from 1 to {n}, or a float in (0, 1]"
        )
    if method.stages and not set(method.stages) & set(facts.stages):
        raise ValueError(
            f"method={method.name!r} acts at stage {' and '.join(map(repr, method.stages))}, which a {facts.family} "
            f"model does not offer; it offers: {', '.join(facts.stages)}"
        )
    check_tower(method, facts)


def check_tower(method: Method, facts: ModelFacts) -> None:
    """Raise where ``method`` looks into blocks of the tower, or spreads what it does over them, and there are none."""
    if facts.tower_depth:
        return
    deep, deeper = (method.plan(replace(facts, tower_depth=n, feature_block=n - 1)) for n in (DEEP, 2 * DEEP))
    if deep != deeper or any(block_of(need) is not None for step in deep for need in step.needs):
        raise ValueError(
            f"method={method.name!r} listens to blocks of the vision tower, or spreads its schedule over them, and the tower of "
            f"this {facts.family} model has none that can be listened to; use a method that looks at features, text or the "
            "language model (`tokenreduce methods` says what each looks at)"
        )


def check_step(name: str, step: Step, facts: ModelFacts) -> None:
    """Raise where a model of these ``facts`` cannot serve ``step`` of the method ``name``, or would too late."""
    if not isinstance(step, Step):
        raise TypeError(f"method={name!r}: plan gave a {type(step).__name__}; allowed: a tuple of Step(...)")
    for word, allowed in WORDS.items():
        if getattr(step, word) not in allowed:
            raise ValueError(
                f"method={name!r}: {word}={getattr(step, word)!r} in a Step; allowed: {', '.join(map(repr, allowed))}"
            )
    if step.stage not in facts.stages:
        does = step.stage if step.stage != "cache" else "trims" if step.codec is None else "codes"
        raise ValueError(
            f"method={name!r} acts at stage {step.stage!r}, which a {facts.family} model does not offer; it offers: "
            f"{', '.join(facts.stages)}. {WAYS_OUT.get(does, 'Use a method of these stages')}"
        )
    if step.stage == "projector":
        if step.layer is not None:
            raise ValueError(f"method={name!r}: {step} has a layer; allowed at the projector: layer=None")
    elif step.stage == "pixels":
        if step.layer is not None and not 0 < step.layer < facts.tower_depth:
            raise ValueError(
                f"method={name!r}: layer={step.layer} at stage 'pixels'; allowed: a vision block from 1 to "
                f"{facts.tower_depth - 1} on this {facts.family} model, or None, in front of all of them"
            )
    else:
        depth = facts.feature_block + 1 if step.stage == "encoder" else facts.decoder_depth
        first = int(step.stage == "decode")  # what a new token reads is chosen by what it attended to before
        if isinstance(step.layer, bool) or not isinstance(step.layer, int) or not first <= step.layer < depth:
            raise ValueError(
                f"method={name!r}: layer={step.layer!r} at stage {step.stage!r}; allowed: an int from {first} to {depth - 1}, "
                f"counted from 0, on this {facts.family} model"
            )
        if step.stage == "llm" and facts.shared_from is not None and step.layer > facts.shared_from:
            raise ValueError(
                f"method={name!r}: layer={step.layer} at stage 'llm', but later layers of this {facts.family} model attend to "
                f"the keys of decoder layer {facts.shared_from}, which would still hold what has left; allowed: 0 to "
                f"{facts.shared_from}"
            )
    if step.stage == "decode":
        _check_decode(name, step)
    _check_before(name, step, facts)
    check_around_layer(name, step, facts)
    check_cache_step(name, step, facts)
    for need in step.needs:
        if not isinstance(need, Signal):
            raise TypeError(f"method={name!r} needs {need!r}; allowed: signals, such as ClsAttention(22)")
        if step.stage == "pixels":
            if need != ImageFingerprint():
                raise ValueError(
                    f"method={name!r} needs {need} at {_place(step)}, which comes before it; allowed there: ImageFingerprint()"
                )
            continue
        if step.stage == "encoder":
            check_inside(name, need, step, facts)
            continue
        if isinstance(need, TowerPrefix) and not facts.tower_prefix:
            raise ValueError(
                f"method={name!r} needs {need}, but the vision tower of a {facts.family} model has no rows in front of its "
                "patches; choose a method, or parameters, that need none"
            )
        heard = need.of if isinstance(need, Text) else need
        layer = getattr(heard, "layer", getattr(heard, "block", None))
        depth, unit = (facts.tower_depth, "block") if need.part == "tower" else (facts.decoder_depth, "decoder layer")
        if layer is not None and (isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < depth):
            raise ValueError(
                f"method={name!r} needs {need}; allowed on this {facts.family} model: a {unit} from 0 to {depth - 1}"
            )
        if isinstance(need, LastQueryAttention) and need.ahead:
            if step.stage != "llm" or step.layer != layer:
                raise ValueError(
                    f"method={name!r} needs {need} at {_place(step)}; allowed: ahead=True of the layer that the step shortens, "
                    f"Step('llm', layer={layer})"
                )
        elif layer is not None and need.part == "llm" and (step.stage == "projector" or (step.layer or 0) <= layer):
            raise ValueError(
                f"method={name!r} needs {need} at {_place(step)}, which comes before it; allowed: signals of earlier layers. "
                f"Act at Step({'decode' if step.stage == 'decode' else 'llm'!r}, layer={layer + 1}) or later"
            )


def _check_before(name: str, step: Step, facts: ModelFacts) -> None:
    if step.when == "attention" and (step.needs or step.stage != "encoder" or "projector" in facts.stages):
        raise ValueError(
            f"method={name!r} merges around the attention at {_place(step)} of a {facts.family} model, needs={step.needs}; "
            "allowed: encoders alone, without needs: tokens.features is what enters the attention"
        )
    if step.when == "before" and step.needs:
        raise ValueError(
            f"method={name!r} needs {step.needs[0]} at {_place(step)}, before the block; allowed there: what enters it, which is "
            "tokens.features"
        )
    if step.joins == 1:
        if step.prefix == "mean":
            raise ValueError(
                f"method={name!r}: prefix='mean' of {step} that joins no frames; allowed: with joins from 2 on"
            )
        return
    if step.when != "before" or step.joins < 1:
        raise ValueError(
            f"method={name!r}: joins={step.joins} with when={step.when!r}; allowed: when='before', and at least 1"
        )
    if "projector" in facts.stages:
        raise ValueError(
            f"method={name!r} goes on with several frames as one sequence, but the vision tower of a {facts.family} model "
            "encodes each by itself and is not told which are of one video; use it on an encoder alone, or merge behind the tower"
        )


def _check_decode(name: str, step: Step) -> None:
    for need in step.needs:
        if not isinstance(need, LastQueryAttention) or need.ahead:
            raise ValueError(
                f"method={name!r} needs {need} at {_place(step)}; allowed while decoding: what the new token attends to in an "
                "earlier layer, such as Step('decode', layer=3, needs=(LastQueryAttention(2),))"
            )


def check_inside(name: str, need: Signal, step: Step, facts: ModelFacts) -> None:
    """Raise where the encoder ``step`` cannot be shown ``need``: there are the keys of its block, and its attention."""
    keys = isinstance(need, Keys) and need.heads == "mean"
    attention = isinstance(need, ClsAttention) or (isinstance(need, AttentionReceived) and need.where == "tower")
    own = isinstance(need, (BlockInput, AttentionMap))
    if not (keys or attention or own) or block_of(need) != step.layer:
        raise ValueError(
            f"method={name!r} needs {need} at {_place(step)}; allowed inside an encoder: keys of the block itself, such as "
            "Step('encoder', layer=3, needs=(Keys(3),)), or its attention, ClsAttention(3) or AttentionReceived(3)"
        )
    if (isinstance(need, ClsAttention) or getattr(need, "of", None) == "cls") and not facts.has_cls:
        raise ValueError(
            f"method={name!r} needs {need}, but the vision tower of a {facts.family} model has no [CLS] token; ask for "
            f"AttentionReceived({step.layer}) instead"
        )


def _place(step: Step) -> str:
    return f"stage {step.stage!r}" if step.layer is None else f"stage {step.stage!r}, layer {step.layer}"


def check_plan(name: str, plan: object) -> None:
    """Raise unless ``plan`` is a row of steps; each is looked at by ``check_step``."""
    if not isinstance(plan, (tuple, list)):
        raise TypeError(
            f"method={name!r}: plan gave a {type(plan).__name__}; allowed: a tuple of steps, such as (Step('projector'),)"
        )


def is_bounded(steps: Sequence[Step]) -> bool:
    """Whether a method with these ``steps`` reduces once and behind the vision tower, so that its budget is said of that."""
    return len(steps) == 1 and steps[0].stage != "encoder"


def check_count(method: Method, plan: Reduction, n: int, layout: Layout) -> None:
    """Raise where ``plan`` leaves more of ``n`` tokens of a picture of ``layout`` than the budget of a bounded ``method``."""
    most, kept = max(method.most(n), method.always_left(layout)), plan.num_kept
    if kept > most and plan.valid is not None:
        kept = int(plan.valid.sum(dim=1).max())
    if kept > most:
        raise ValueError(
            f"method={method.name!r} left {kept} of {n} tokens; allowed: at most {most}, which is keep={method.keep!r}. Take "
            "k = self.budget.count(tokens.num_tokens); where more is meant, say so in most(n)"
        )


def substitutes_of(method: Method, facts: ModelFacts) -> tuple[str, ...]:
    """What stands in for something that the model lacks; raise where ``method`` is to run as published."""
    found = method.substitutes(facts)
    if found and method.strict:
        raise ValueError(
            f"method={method.name!r} with strict=True would run on this {facts.family} model with {found[0]}; allowed: "
            "strict=False, which takes the substitute and names it in the report, or a model that has what the paper uses"
        )
    return tuple(f"{method.name}: {clause}" for clause in found)
