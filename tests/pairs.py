"""Every method on every family: a pair keeps the contracts, or refuses and says why. What the matrix tests and the docs show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import reduced
import torch

import tokenreduce as tr
from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.registry import families, family_of
from tokenreduce.eval import tiny_models as zoo
from tokenreduce.eval.doctor.shortened import decoder_of
from tokenreduce.eval.method_check import contracts
from tokenreduce.eval.tiny_models.common import Plan
from tokenreduce.method import Method
from tokenreduce.registry import registry

#: for models this small: a window that divides grids of 4 x 4, a budget that five layers can meet, groups that fit a prompt
SMALL: dict[str, dict[str, Any]] = {"mustdrop": {"window": 2, "keep": 0.75}, "vidkv": {"group": 4, "residual": 4}}
SMALL["video_xl_2"] = {"block_size": 1, "previous": 0, "chunk_size": 1, "run": 2}
ADVICE = ("allowed", "use ", "pass ", "give ", "offers", "choose")
WORKS, PASSES, REFUSES = "works", "passes them through", "refuses: "

#: samples of prompts with videos, by kind
VIDEOS: dict[str, list[str]] = {"video": ["v"], "several videos": ["v", "v"], "mixed": ["i0", "v"]}


def made(name: str) -> Method:
    return registry()[name](**{"keep": 0.5, **SMALL.get(name, {})})


def kinds(key: str) -> list[str]:
    """The kinds of prompts a pair is tried with: images, and videos where the family takes them."""
    return ["images", *(kind for kind in VIDEOS if takes(key, kind))]


def takes(key: str, kind: str) -> bool:
    family = zoo.KNOWN[key]
    return family.film_shape is not None and (kind != "mixed" or not family.apart)


def verdicts(key: str, name: str) -> dict[str, str]:
    """How a method fares with every kind of prompt, those with videos in one batch as long as none is refused."""
    images, *videos = kinds(key)
    found = {images: verdict(key, name, "mixed")}
    if not videos:
        return found
    together = verdict(key, name, batch(videos))
    apart = together.startswith(REFUSES)
    return found | {kind: verdict(key, name, batch([kind])) if apart else together for kind in videos}


def batch(kinds: list[str]) -> Plan:
    """A sample of each of ``kinds`` of prompts with videos, and one without any."""
    return [*(VIDEOS[kind] for kind in kinds), []], "left"


def verdict(key: str, name: str, plan: str | Plan) -> str:
    """How a method fares with one batch of prompts: it works, passes pictures through, or refuses and says why."""
    why = refusal(key, made(name), plan)
    if why:
        return REFUSES + short(key, name, why)
    return WORKS if keeps_the_contracts(key, name, plan) else PASSES


def refusal(key: str, method: Method, plan: str | Plan) -> str:
    """The error that wrapping, or the first prompt, answers with; empty when there is none. It must teach."""
    model = reduced.model(key)
    with torch.no_grad():
        model(**zoo.inputs(key, plan, model))  # transformers installs hooks of its own in the first forward pass
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    why = ""
    try:
        with tr.wrapped(model, method), torch.no_grad():
            model(**zoo.inputs(key, plan, model))
    except ValueError as error:
        why = str(error)
        assert any(word in why for word in ADVICE), why
    assert before == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return why


def keeps_the_contracts(key: str, name: str, plan: str | Plan) -> bool:
    """Assert contracts 1, 2, 4 and 5; returns whether anything was reduced."""
    model, method = reduced.model(key), made(name)
    case = zoo.case(key, plan, model)
    setting = contracts.Setting(key, method, model, model, case, writes=not zoo.KNOWN[key].brief)
    contracts.full_budget_changes_nothing(setting)
    with torch.no_grad():
        bare = model(**case.inputs).logits
    with tr.wrapped(model, method), torch.no_grad():
        logits = model(**case.inputs).logits
        trace, report = tr.trace(model), tr.report(model)
    counts(method, trace, report, decoder_of(model).config.num_hidden_layers)
    whole = report.tokens_kept == report.tokens_in and report.flops == report.flops_unreduced
    if whole and report.kv_bytes == report.kv_bytes_unreduced:
        assert torch.equal(logits, bare), (
            "pictures that pass change nothing, not even what a bare batch does to its samples"
        )
        return False
    contracts.batch_equals_its_samples(setting)
    return True


def counts(method: Method, trace: tr.Trace, report: tr.Report, depth: int) -> None:
    """Exactly the budget for every picture the method is for, in source order; nothing else is touched."""
    for image in trace.images:
        n, medium = image.tokens_in, image.layout.medium
        held = [image.kept(layer) for layer in range(depth)]
        lengths = [len(kept) for kept in held]
        if medium not in method.media:
            assert lengths == [n] * depth
            continue
        if method.counts_at == "passed_by":  # in the layers that tokens pass by, and all in the others
            assert {n} != set(lengths) <= {n, method.budget.count(n)}
        elif method.counts_at != "kept":  # an average over layers, in the counting of its paper
            counted = [*lengths[1:], lengths[-1]] if method.counts_at == "output_average" else lengths
            near = 0.7 if method.counts_at != "layers" else n / depth / 2 + 1e-6  # half a layer
            assert math.isclose(sum(counted) / depth, method.budget.keep * n, abs_tol=near)
        elif any(
            passed.stage == "encoder" for passed in image.stages
        ):  # every view by itself; padding that is cut off afterwards may take tokens along
            whole = [view.height * view.width * view.frames for view in image.layout.views or [image.layout]]
            assert 0 < lengths[0] <= sum(map(method.budget.count, whole))
            assert lengths[0] == sum(map(method.budget.count, whole)) or n < sum(whole)
        else:
            left = lengths[0 if "llm" not in method.stages or method.name == "holitom" else -1]
            merged = image.stages and bool(
                (image.stages[0].assign >= 0).all()
            )  # into fewer than the budget, all of them
            wanted = max(method.budget.count(n), method.always_left(image.layout))
            assert left == wanted or (merged and left < wanted)
        for kept in held:
            real = kept[kept >= 0].tolist()  # a summary sits at no token
            assert real == sorted(real)
        for layer, (seats, kept) in enumerate((image.seats(layer), held[layer]) for layer in range(depth)):
            assert set(seats.tolist()) <= set(image.columns.tolist())
            assert len(seats) == len(kept), layer


# ---------------------------------------------------------------------- tables


@dataclass
class Notes:
    """Refusals by number, each said once."""

    said: list[str]

    def number(self, why: str) -> str:
        if why not in self.said:
            self.said.append(why)
        return f"[[{self.said.index(why) + 1}]](#refusals)"


def record(key: str) -> dict[str, Any]:
    """What ran of a family, for JSON: its facts in words, and how every method fares with every kind of prompt."""
    return {
        "facts": facts_row(key),
        "methods": {name: verdicts(key, name) for name in registry()},
    }


def cell(found: dict[str, str], notes: Notes) -> str:
    alike: dict[str, list[str]] = {}
    for kind, one in found.items():
        if one.startswith(REFUSES):
            one = f"refuses {notes.number(one.removeprefix(REFUSES))}"
        alike.setdefault(one, []).append(kind)
    if len(alike) == 1:
        return next(iter(alike))
    return "; ".join(f"{', '.join(kinds)}: {text}" for text, kinds in alike.items())


def short(key: str, name: str, why: str) -> str:
    """The first clause of a refusal, in words that hold for every family and method."""
    kind = reduced.model(key).config.model_type
    why = why.replace(f"a {kind} model", "such a model").replace(f"this {kind} model", "such a model")
    return why.partition("; ")[0].removeprefix(f"method={name!r} ")


def facts_row(key: str) -> list[str]:
    """What a reader of the table of families wants to know, read off the model and a prompt."""
    model = reduced.model(key)
    family = family_of(model)
    facts = family.facts()
    images = seen(key, "mixed")
    tower = getattr(getattr(model.config, "vision_config", None), "model_type", "-")
    tower += ", [CLS]" if facts.has_cls else "" if facts.tower_depth else ", nothing to listen to"
    kinds_of = {(layout.views and "views of a picture") or "one grid" for layout in images}
    tiles = len(images) > sum(len(own) for own in zoo.case(key, "mixed", model).visuals)
    pictures = "tiles, each an image" if tiles else " or ".join(sorted(kinds_of))
    positions = POSITIONS.get(family.pictures_join) or axes(model)
    if type(family).two_way is not Family.two_way:
        positions += ", both ways"
    videos = "-"
    if "video" in zoo.kinds(key):
        layouts = seen(key, "video")
        videos = "one picture of T frames" if layouts[0].medium == "video" else "frames are images"
        videos += pooling(family, facts, layouts[0])
        videos += f"; never beside images: {zoo.KNOWN[key].apart}" if zoo.KNOWN[key].apart else ""
    types = ", ".join(f"`{t}`" for t, cls in families().items() if cls is type(family))
    return [f"`{key}`", types, tower, pictures + pooling(family, facts, images[0]), positions, videos, family.remarks]


#: of families whose pictures are no columns of the decoder's sequence
POSITIONS = {"cross_attention": "none, attended to across", "text_encoder": "learned, of a text encoder"}


def axes(model: Any) -> str:
    """Along how many axes the language model counts positions."""
    decoder = decoder_of(model)
    if not hasattr(decoder, "rotary_emb"):
        return "none"
    rope = getattr(decoder.config, "rope_parameters", None) or {}
    by_kind = [own for own in rope.values() if isinstance(own, dict)]  # of layers
    n = max(len(own.get("mrope_section", [1])) for own in (rope, *by_kind))
    return f"{n} axes" if n > 1 else "1 axis"


def seen(key: str, kind: str) -> list[tr.Layout]:
    model = reduced.model(key)
    _, trace = reduced.forward(model, zoo.inputs(key, kind, model), tr.Uniform(keep=0.5))
    return [image.layout for image in trace.images]


def pooling(family: Any, facts: tr.ModelFacts, layout: tr.Layout) -> str:
    """How many patches of the tower make a token."""
    view = layout.views[0] if layout.views else layout
    if not facts.tower_depth or not (family.packs or facts.tower_grid):
        return ""
    patches = facts.patches_per_token
    if not family.packs:
        patches *= math.prod(facts.tower_grid) // (view.height * view.width)
    return f", {patches} patches a token" if patches > 1 else ""


HEAD = """# Families and methods

Made by `python docs/make_families.py` from running every pair (`docs/families.json` keeps what ran) on small random models of
the real classes: prompts with several pictures of different size, a sample without any, and, where the family takes videos (its
row says), prompts with a video, with several videos and, mixed, with a video beside an image.
A pair *works* when a full budget changes no bit, the budget is filled exactly for every picture and in source order, text is
untouched, a padded batch equals its samples one by one, and so do the tokens it writes (in families whose ways are those of
others, only a method of each stage writes). Otherwise it *refuses*, before anything is attached or at the call, with an error
that says why (the number) and what to do instead. Layers that hold a sliding window cannot be trimmed by MustDrop, whose
`window` must also divide the grid of patches.
"""


def page(records: dict[str, dict[str, Any]]) -> str:
    """The page of the ``records`` of every family."""
    notes = Notes([])
    facts = table(
        ["family", "`config.model_type`", "tower", "pictures", "positions", "videos", "remarks"],
        [own["facts"] for own in records.values()],
    )
    rows = [[f"`{key}`", *(cell(x, notes) for x in own["methods"].values())] for key, own in records.items()]
    pairs = table(["family", *registry()], rows)
    said = "\n".join(f"{i}. {why}" for i, why in enumerate(notes.said, 1))
    return f"{HEAD}\n## Families\n\n{facts}\n\n## Methods\n\n{pairs}\n\n## Refusals\n\n{said}\n"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
