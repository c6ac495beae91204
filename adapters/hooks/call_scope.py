"""What belongs to one use of a wrapped model: a call of ``generate`` or ``forward``, in one thread; forgotten at its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.answer_labels import before_answers
from tokenreduce.adapters.hooks.exporting import refuse_export
from tokenreduce.adapters.hooks.method_calls import Shadow
from tokenreduce.adapters.upstream.model import prompt_ids, prompt_shape
from tokenreduce.adapters.visual_inputs import TowerCall
from tokenreduce.per_thread import PerThread, nothing

if TYPE_CHECKING:
    from tokenreduce.pipeline import ActivePipeline
    from tokenreduce.reduction import Reduction


@dataclass
class Encodings:
    """Passes of the towers, in order.

    Attributes:
        announced: what was told of the next pass.
        taken: whether a prompt has used them; the next pass then begins a new series.
        seen: pictures that earlier chunks of the prompt showed.
    """

    passes: deque[Any] = field(default_factory=deque)
    announced: dict[str, Any] = field(default_factory=dict)
    taken: bool = False
    seen: int = 0

    def add(self, call: TowerCall) -> None:
        if self.taken:
            self.passes.clear()
            self.taken, self.seen = False, 0
        self.passes.append(call)


@dataclass
class Decided:
    """What was decided for a prompt that is run without a cache, and so from the start again at every step."""

    input_ids: Tensor
    decisions: dict[Any, list[Reduction]]


@dataclass
class Scope:
    """One call of ``generate``, or, outside of it, of ``forward`` or of a method that encodes pictures.

    Attributes:
        shape: rows and columns of the prompt that ``generate`` was given. More rows are beams, columns behind these an
            answer or a guess of one.
        input_ids: (B, L) long, the prompt, where it was given as ids.
        labels: (B, L) long, what a call of ``forward`` was told to learn; -100 where nothing.
    """

    generates: bool = False
    shape: tuple[int, int] | None = None
    input_ids: Tensor | None = None
    labels: Tensor | None = None
    encoded: Encodings = field(default_factory=Encodings)
    decided: Decided | None = None

    @property
    def prompt(self) -> int | None:
        """Columns of the prompt, where ``generate`` was given one."""
        return None if self.shape is None else self.shape[1]

    def repeat(self, batch: int) -> int:
        """How many of the ``batch`` rows that the decoder runs share a row of the prompt."""
        return 1 if self.shape is None else max(batch // self.shape[0], 1)


class CallScopes:
    """The scopes of one wrapped model, of every thread by itself."""

    scope = PerThread[Scope | None](nothing)
    #: passes of a tower that was called by itself: nobody's, one at a time
    stray = PerThread[Encodings](lambda: Encodings(deque(maxlen=1)))
    #: columns of each sample's prompt, as the caller told
    told = PerThread[list[int] | int | None](nothing)
    #: what each sample asks of its pictures, in words, as the caller told
    asked = PerThread[list[str] | str | None](nothing)

    @property
    def encoded(self) -> Encodings:
        """Where a pass of a tower belongs now: to the call it is part of."""
        return self.stray if self.scope is None else self.scope.encoded

    @contextmanager
    def open(self, scope: Scope) -> Iterator[None]:
        """Let ``scope`` hold what is noted; within a call of ``generate`` a call of ``forward`` opens none of its own."""
        outer = self.scope
        if outer is not None and not scope.generates:
            if scope.labels is not None:
                outer.labels = scope.labels
            yield
            return
        self.scope = scope
        try:
            yield
        finally:
            self.scope = outer

    @contextmanager
    def prompt_length(self, columns: Sequence[int] | int) -> Iterator[None]:
        """Let the prompts of each sample be ``columns`` long, padding included.

        Errors: ``ValueError`` for anything but counts of columns.
        """
        columns = columns.tolist() if hasattr(columns, "tolist") else columns
        given = [columns] if isinstance(columns, int) else list(columns)
        if not given or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in given):
            raise ValueError(
                f"prompt_length={columns!r}; allowed: columns of the prompt, 1 or more, or one number per sample"
            )
        outer, self.told = self.told, columns if isinstance(columns, int) else given
        try:
            yield
        finally:
            self.told = outer

    @contextmanager
    def question(self, texts: Sequence[str] | str) -> Iterator[None]:
        """Let each sample ask ``texts``, one for all or one for each."""
        given = [texts] if isinstance(texts, str) else list(texts)
        if not given or not all(isinstance(text, str) for text in given):
            raise TypeError(f"question={texts!r}; allowed: a text, or a text per sample")
        outer, self.asked = self.asked, texts if isinstance(texts, str) else given
        try:
            yield
        finally:
            self.asked = outer

    def questions(self, samples: Sequence[int], batch: int) -> list[str] | None:
        """What the pictures in rows ``samples`` of ``batch`` are asked; None: not told."""
        rows = self._of_rows("question", "text", self.asked, batch)
        return None if rows is None else [rows[sample] for sample in samples]

    def told_columns(self, batch: int) -> list[int] | None:
        """Columns of the prompt of each sample, as the caller or ``generate`` tells; None: not told."""
        if self.told is None:
            prompt = None if self.scope is None else self.scope.prompt
            return None if prompt is None else [prompt] * batch
        return self._of_rows("prompt_length", "number", self.told, batch)

    def check_told(self, samples: int) -> None:
        """Raise ``ValueError`` unless what was told is for all, or for each of the ``samples`` of a call."""
        self._of_rows("question", "text", self.asked, samples)
        self._of_rows("prompt_length", "number", self.told, samples)

    def _of_rows(self, name: str, entry: str, told: Any, batch: int) -> list[Any] | None:
        """What was ``told`` of each of ``batch`` rows, beams of a sample sharing its own; None: nothing."""
        if not isinstance(told, list):
            return None if told is None else [told] * batch
        repeat = 1 if self.scope is None else self.scope.repeat(batch)
        if len(told) * repeat != batch:
            raise ValueError(
                f"{name} has {len(told)} entries; allowed: one {entry}, or {batch // repeat}, one per sample"
            )
        return [told[row // repeat] for row in range(batch)]

    def of_prompt(self, blocks: Tensor | None, offset: int) -> Tensor | None:
        """``blocks`` (B, L) long of a chunk behind ``offset`` columns, with -1 behind the prompt: a proposed answer is causal."""
        if blocks is None or self.scope is None or self.scope.prompt is None:
            return blocks
        column = torch.arange(offset, offset + blocks.shape[1], device=blocks.device)
        return blocks.masked_fill(column >= self.scope.prompt, -1)

    def prompt_ends(self, visual: Tensor, offset: int) -> list[int] | None:
        """Per sample of a chunk, the column behind the question; None where the chunk ends with it.

        ``visual`` (B, L) bool on the CPU are the chunk's visual columns, ``offset`` the columns before it. Told by the
        caller, by ``generate``, or by labels: the first column to be learned behind the last visual one.
        """
        batch, length = visual.shape
        told = self.told_columns(batch)
        if told is not None:
            ends = [n - offset for n in told]
        elif self.scope is not None and self.scope.labels is not None:
            ends = before_answers(self.scope.labels, visual)
        else:
            return None
        last = [int(row.nonzero()[-1]) if bool(row.any()) else -1 for row in visual]
        for sample, (end, column) in enumerate(zip(ends, last)):
            if end <= column:
                raise ValueError(
                    f"prompt_length={end + offset} of sample {sample} ends before its last visual token, in column "
                    f"{column + offset}; allowed: {column + offset + 1} or more, the columns of the prompt with its padding, "
                    "up to where the answer begins"
                )
        return None if all(end >= length for end in ends) else [min(end, length) for end in ends]


class ScopedMethod(Shadow):
    """``forward`` or ``generate`` of one model instance: each call runs in a scope of its own.

    A shadow rather than a hook, since trainers call ``model.forward`` past the hooks of ``model``.
    """

    def __init__(self, owner: Any, name: str, scopes: CallScopes, pipeline: ActivePipeline) -> None:
        super().__init__(owner, name)
        self.scopes = scopes
        self.pipeline = pipeline

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.active:
            return self.original(*args, **kwargs)
        refuse_export()
        told, asked = kwargs.pop("prompt_length", None), kwargs.pop("question", None)
        reduced: dict[str, Any] = {key: kwargs.pop(key) for key in ("tr_keep", "tr_method") if key in kwargs}
        if self.name == "generate":
            scope = Scope(generates=True, shape=prompt_shape(args, kwargs))
        else:
            scope = Scope(labels=kwargs.get("labels"))
        scope.input_ids = prompt_ids(args, kwargs)
        with ExitStack() as said:
            said.enter_context(self.scopes.open(scope))
            if reduced:
                said.enter_context(self.pipeline.exchanged(self.pipeline.asked(self.pipeline.now, reduced)))
            if told is not None:
                said.enter_context(self.scopes.prompt_length(told))
            if asked is not None:
                said.enter_context(self.scopes.question(asked))
            given = prompt_shape(args, kwargs)
            if self.scopes.scope is scope and given is not None:  # within generate rows are beams
                self.scopes.check_told(given[0])
            return self.original(*args, **kwargs)
