"""A prompt whose video grows: frames join the cache of a wrapped model piece by piece, questions are asked in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.hooks.kv_cache import append_columns, cut, drop_columns, last_columns
from tokenreduce.adapters.hooks.model_hooks import ModelHooks
from tokenreduce.adapters.registry import families
from tokenreduce.adapters.upstream.cache import NAMES, DynamicCache, DynamicLayer, cache_argument
from tokenreduce.joint_space import Question
from tokenreduce.pipeline import Pipeline

#: arguments of ``generate`` under which an answer cannot be taken back from the cache
REFUSED = {
    "num_beams": "beams share a cache that cannot be cut back to what was there before",
    "num_return_sequences": "several answers share a cache that cannot be cut back to what was there before",
    "use_cache": "what was seen is in the cache",
    "assistant_model": "a second model has not seen the frames",
    **dict.fromkeys(("cache_implementation", *NAMES), "the stream has a cache of its own"),
}


@dataclass(frozen=True)
class Place:
    """How far a growing prompt has come.

    Attributes:
        columns: tokens in the cache.
        following: position id of a token of text that comes next.
        start: position id at which the video begins; None: no frame yet. ``steps``: its steps of time so far.
        behind: columns at the end of the cache that stand behind the frames, and go when frames follow.
        text: columns in front of the frames; ``windows``, of each window whose tokens are in the cache, the oldest first.
        noted: by number of the method, what it noted of the video.
    """

    columns: int = 0
    following: int = 0
    start: int | None = None
    steps: int = 0
    behind: int = 0
    text: int = 0
    windows: tuple[int, ...] = ()
    noted: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)


class GrowingPrompt:
    """The cache of one video that goes on, and where it stands; it holds what methods keep and nothing of what they drop.

    Args:
        hooks: those of the wrapped model, whose methods reduce every piece.

    Errors: ``ValueError`` for a family, a decoder or a method with which this would not be what one prompt is.
    """

    def __init__(self, hooks: ModelHooks) -> None:
        self.hooks, self.family, self.model = hooks, hooks.family, hooks.family.model
        refuse_family(self.family)
        refuse_methods(hooks.pipeline)
        self.cache = DynamicCache(config=self.family.decoder.config)
        kinds = {type(layer).__name__ for layer in self.cache.layers if type(layer) is not DynamicLayer}
        if kinds:
            raise ValueError(
                f"the decoder of this {self.model.config.model_type} model keeps {', '.join(sorted(kinds))}, from which an "
                "answer cannot be taken back; allowed for a stream: full attention in every layer"
            )
        self.place = Place()

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    def write(self, ids: Tensor) -> None:
        """Let the text ``ids`` (n,) long follow."""
        if not len(ids):
            return
        place = self.place
        self._run(place, {"input_ids": ids[None].to(self.device)}, self.family.text_ids(place.following, len(ids)))
        n = place.columns + len(ids)
        self.place = replace(place, columns=n, text=n, following=place.following + len(ids))

    def show(self, arguments: Mapping[str, Any], columns: int, steps: int) -> None:
        """Let frames follow, ``steps`` steps of time that take ``columns`` placeholders; ``arguments`` bring their pixels."""
        place = self.place
        if place.behind:
            cut(self.cache, place.columns - place.behind)
            columns_now, following = place.columns - place.behind, place.following - place.behind
            place = replace(place, columns=columns_now, following=following, behind=0)
        start = place.following if place.start is None else place.start
        ids, following = self.family.ids_going_on(arguments, columns, start, place.steps, place.following)
        if any(method.policy == "renumber" for method in self.hooks.pipeline.methods):
            ids, following = self.family.text_ids(place.following, columns), place.following + columns
        medium = self.family.streams_as
        assert medium is not None, "other families are refused"
        placeholders = torch.full((1, columns), self.family.placeholder_ids()[medium], device=self.device)
        self.hooks.going_on = dict(place.noted)
        try:
            shift = self._run(place, {**arguments, "input_ids": placeholders}, ids)
            noted = self.hooks.going_on
        finally:
            self.hooks.going_on = None
        trace = self.hooks.done.trace
        assert trace is not None, "the frames have just run"
        (image,) = trace.images
        held, behind = int(self.cache.get_seq_length()), columns - 1 - (int(image.columns[-1]) - trace.offset)
        self.place = Place(
            columns=held,
            following=following - shift,
            start=start,
            steps=place.steps + steps,
            behind=behind,
            text=place.text,
            windows=(*place.windows, held - behind - place.columns),
            noted=noted or {},
        )

    def forget(self, most: int) -> None:
        """Free the oldest windows, whole, until at most ``most`` tokens of the video are left.

        What stays keeps its keys, values and position ids; they were made while what leaves was still seen.

        Errors: ``ValueError`` where the latest window alone has more.
        """
        place, windows = self.place, self.place.windows
        while sum(windows) > most:
            windows = windows[1:]
        if place.windows and not windows:
            raise ValueError(
                f"history={most} tokens, but {place.windows[-1]} were kept of one window; allowed: at least as many, or a "
                "smaller keep or window"
            )
        gone = sum(place.windows) - sum(windows)
        if gone:
            drop_columns(self.cache, place.text, place.text + gone)
            self.place = replace(place, columns=place.columns - gone, windows=windows)

    def _run(self, place: Place, arguments: dict[str, Any], ids: Tensor) -> int:
        """Run the model up to its last hidden states; returns by how much position ids fell behind those given."""
        core = self.family.core
        arguments |= {
            "position_ids": ids.to(self.device),
            cache_argument(type(core).forward): self.cache,
            "use_cache": True,
        }
        try:
            with torch.no_grad():
                core(**arguments)
        except BaseException:
            cut(self.cache, place.columns)
            raise
        state = getattr(self.cache, "reduction", None)
        if state is None:
            return 0
        # what was dropped is nobody's concern any more: to callers, too, the cache is as long as it is
        self.cache.reduction = None  # type: ignore[attr-defined]
        shift = state.shift[0]
        return 0 if shift is None else int(shift[0])

    def mark(self) -> Mark:
        """Where the prompt stands, to come back to."""
        return Mark(self.place, last_columns(self.cache, self.place.behind))

    def back(self, mark: Mark) -> None:
        """Forget everything since ``mark``; keys and values are then what they were, bit for bit."""
        cut(self.cache, mark.place.columns - mark.place.behind)
        append_columns(self.cache, mark.tail)
        self.place = mark.place

    def answer(self, ids: Tensor, generation: Mapping[str, Any]) -> Tensor:
        """(n,) long, what ``generate`` writes behind the text ``ids`` (m,); the prompt stays as it was.

        Errors: ``ValueError`` for arguments in ``generation`` under which it could not.
        """
        for name, why in REFUSED.items():
            if generation.get(name) not in (None, 1):
                raise ValueError(f"{name}={generation[name]!r} of a stream: {why}; leave it out")
        place, mark = self.place, self.mark()
        whole = torch.ones(1, place.columns + len(ids), dtype=torch.long, device=self.device)
        given = {
            "input_ids": ids[None].to(self.device),
            "attention_mask": whole,
            "position_ids": self.family.text_ids(place.following, len(ids)).to(self.device),
            cache_argument(type(self.model).forward): self.cache,
        }
        try:
            with torch.no_grad():
                written = self.model.generate(**given, **generation)
        finally:
            self.back(mark)
        return getattr(written, "sequences", written)[0, len(ids) :]


@dataclass(frozen=True)
class Mark:
    """A place, and per layer the keys and values (1, H, n, d) that stand behind the frames there."""

    place: Place
    tail: list[tuple[Tensor, Tensor]]


def refuse_family(family: Family) -> None:
    """Raise where a video in pieces would not be the video that the model knows."""
    if family.streams_as is not None:
        return
    able = sorted(name for name, cls in families().items() if getattr(cls, "streams_as", None) is not None)
    raise ValueError(
        f"a {family.model.config.model_type} model takes a video in one call only: it writes something between its frames, looks "
        "at several of them at once, or was not seen to go on in a later call; allowed for a stream: models of type "
        f"{', '.join(able)}"
    )


def refuse_methods(pipeline: Pipeline) -> None:
    """Raise where what is kept depends on a question, which comes later, or leaves layers of unlike lengths."""
    for method, step in pipeline.steps:
        if step.stage not in ("pixels", "encoder", "projector"):
            raise ValueError(
                f"method={method.name!r} acts inside the language model (stage {step.stage!r}), by what a question attends to, "
                "but frames of a stream arrive before the question; allowed: methods that act before the language model, or "
                "this one with inner_keep=1.0, where its step inside the model can be left out"
            )
        for signal in step.needs:
            if signal.part == "llm" or isinstance(signal, Question):
                raise ValueError(
                    f"method={method.name!r} reads the question ({signal}), but frames of a stream arrive before it; allowed: "
                    "methods that look at frames alone"
                )
