"""What a method is: hyper-parameters, a plan of steps, and one function from tokens to a reduction."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch

from tokenreduce.attention_rows import AttentionRows
from tokenreduce.budgets import Budget
from tokenreduce.cache_codec import Codec
from tokenreduce.layout import Layout, Seen
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import PositionPolicy, Reduction
from tokenreduce.signals import Signal
from tokenreduce.tokens import Stage, VisualTokens
from tokenreduce.validation import choice, truth


@dataclass(frozen=True)
class Step:
    """One place where a method acts.

    Attributes:
        stage: the stage; ``layer``: the encoder block or decoder layer (0-based) where the stage has several. At the pixels, the
            vision block in front of which units leave; None: the first. While decoding, the decoder layer from which on the new
            token reads only the entries that the plan selects; the cache keeps all of them, and the method is asked anew.
        needs: signals shown there; ``amount``, what the plan worked out, handed back as ``tokens.amount``, such as how many
            tokens merge here. At the encoder it may be None as long as ``tower_grid`` is: another plan follows then.
        when: in an encoder, ``before`` the block, in its ``middle``, behind attention, ``after`` it, or around ``attention``. In
            a decoder around a ``layer``, which tokens that the plan drops pass by; they are there again behind it.
        joins: in front of it, so many neighbours of the batch, frames of a video, become one sequence, first their prefix rows;
            ``prefix``, what becomes of these: ``keep`` all, or the ``mean`` over the frames, one row of each kind.
        decode_ids: at the cache, ids of tokens written behind: ``continue`` the prompt's, or each layer's ``cache_length``.
        through, survivors_of: at the cache, caches of layers ``layer`` to ``through`` are cut to the tokens that ``survivors_of``
            works on, without asking the method again; None: from ``layer`` on, to what it answers.
        codec: at the cache, how it holds, from ``layer`` on, what every reduction left. Which original tokens are to lose less,
            the method notes as ``protected``, (B, N0) bool.
        split: at the cache, text behind the last picture of a prompt is read only once the cache is as all steps leave it.
        chunks: with that, of a video, (frames of a chunk, chunks): each chunk sees itself, so many chunks of its video before it,
            and everything else that comes before it; None: all.
        proportional: at the encoder, whether attention from then on counts a merged token as many times as its size.
    """

    stage: Stage
    layer: int | None = None
    needs: tuple[Signal, ...] = ()
    amount: Any = None
    when: Literal["before", "middle", "after", "attention", "layer"] = "middle"
    joins: int = 1
    prefix: Literal["keep", "mean"] = "keep"
    proportional: bool = False
    decode_ids: Literal["continue", "cache_length"] = "continue"
    through: int | None = None
    survivors_of: int | None = None
    codec: Codec | None = None
    split: bool = False
    chunks: tuple[int, int] | None = None


#: ``keep`` counts tokens ``kept`` in the end; over layers, the ``average`` in, whole ``layers``, or handed on; each ``passed_by``
CountsAt = Literal["kept", "average", "layers", "output_average", "passed_by"]

_REGISTERED: dict[str, type[Method]] = {}
_LOOKED_AT: set[tuple[object, ...]] = set()


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods: a frozen dataclass whose fields are the hyper-parameters.

    A subclass sets the class attributes, overrides ``plan`` (where it acts and what it needs to see) and ``reduce`` (the
    mathematics), and is registered under ``name`` by being defined (``class Mine(Method, register=False)`` is not). At the pixels
    and at the projector ``reduce`` is shown one view of an image at a time; inside the language model, the whole image.

    Attributes:
        keep: fraction in (0, 1] of the tokens entering the stage, a count per image, or, where the class ``adapts``, ``auto``.
        positions: ``keep`` the original position ids of survivors, or ``renumber`` the shortened sequence.
        output_order: how tokens merged inside an encoder reach a language model: in ``raster`` order of where they sit,
            or in the ``reference`` order in which the method leaves them.
        strict: refuse a model that lacks something the paper builds on, instead of the documented substitute.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str] = ""
    stages: ClassVar[tuple[Stage, ...]]
    looks_at: ClassVar[str] = ""
    media: ClassVar[tuple[str, ...]] = ("image", "video")  # what it reduces; anything else passes through untouched
    sees: ClassVar[Seen] = "video"  # there: each tile and the whole video, each frame, or all of an image
    adapts: ClassVar[bool] = False  # whether keep='auto' has a meaning
    shortens: ClassVar[bool] = True  # whether ``keep`` says how many tokens are left; else it only turns off, by 1.0
    counts_at: ClassVar[CountsAt] = "kept"
    output_order = "raster"
    unmerges = False  # whether decoder layers read rows merged inside the tower at all places they stand for

    keep: float | int | str | None = 0.5
    positions: PositionPolicy = "keep"
    strict: bool = False

    def __init_subclass__(cls, *, register: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if register and "name" in cls.__dict__:
            other = _REGISTERED.get(cls.name, cls)
            if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(
                    f"name={cls.name!r} of {cls.__qualname__} is taken by {other.__module__}.{other.__qualname__}; allowed: a "
                    "name of its own, or class ...(Method, register=False)"
                )
            _REGISTERED[cls.name] = cls

    def __post_init__(self) -> None:
        if self.budget.adapts and not self.adapts:  # raises where keep is no budget
            able = ", ".join(sorted(cls.name for cls in _REGISTERED.values() if cls.adapts))
            raise ValueError(
                f"method={self.name!r}: keep={self.keep!r}, but it keeps a number that you give; allowed: a fraction such as "
                f"keep=0.25, or a count such as keep=64. Methods that find a number for each image: {able}"
            )
        choice("positions", self.positions, ("keep", "renumber"))
        for given in fields(self):
            if given.type in ("bool", "bool | None"):
                truth(given.name, getattr(self, given.name), none="None" in given.type)

    @property
    def budget(self) -> Budget:
        keep = 0.5 if self.keep is None and not self.shortens else self.keep
        return Budget(keep)  # type: ignore[arg-type]  # None is refused, unless a subclass gives it a meaning

    @property
    def policy(self) -> PositionPolicy:
        """``positions``, but tokens that arrive in another order than their places can only be renumbered."""
        return self.positions if self.output_order == "raster" else "renumber"

    def is_identity(self, n: int) -> bool:
        """Whether ``n`` tokens pass through untouched; then ``reduce`` is not called at all."""
        if not self.shortens:
            return self.budget.is_full
        return (self.budget.least(n) if self.budget.adapts else self.budget.count(n)) >= n

    def most(self, n: int) -> int:
        """Rows that may be left of ``n`` tokens where this is all the method does behind the vision tower; more are refused.

        A method that rounds up, or whose counts follow the image, says so by overriding.
        """
        return self.budget.count(n) if self.shortens else n

    def always_left(self, layout: Layout) -> int:
        """Rows that a step at the projector leaves of a picture of ``layout``, however few are asked for; 0: none."""
        return 0 if self.shortens else layout.num_tokens

    def leaving(self, tokens: VisualTokens) -> int | None:
        """How many ``tokens`` of an image a step at the projector leaves, to be shared among its views; None: by content."""
        return None if self.keep is None else self.budget.count(tokens.num_tokens)

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        """Where this method acts on such a model: at the projector, where it looks at features alone, unless it says otherwise.

        Errors: ``ValueError`` when the model cannot serve it.
        """
        if self.stages != ("projector",):
            raise NotImplementedError(
                f"{type(self).__name__} acts at {', '.join(self.stages)}; define plan(facts), which says at which steps"
            )
        return (Step("projector"),)

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        """What stands in, on such a model, for something it lacks, a clause each: only what the method chose by itself, a
        parameter left at None; what the user set is honoured or refused by ``plan``.
        """
        return ()

    def reduce(self, tokens: VisualTokens) -> Reduction:
        """Which of ``tokens`` survive and who joins whom."""
        raise NotImplementedError

    def around(self, tokens: VisualTokens) -> AttentionRows:
        """What the attention runs on whose input ``tokens`` are, at a step ``when="attention"``."""
        raise NotImplementedError

    def checked(self, tokens: VisualTokens) -> Reduction:
        """``reduce``, with a plan that fits ``tokens``.

        Signals are looked through, and the plans of methods from elsewhere: on a CPU at every call; where it would make a device
        wait, the first time that a method of this kind acts at this place, as plans of this package's own methods always.

        Errors: ``TypeError`` / ``ValueError`` for a plan that does not fit. Warns of NaN in what tokens are ranked by.
        """
        place = (type(self), tokens.stage, tokens.layer, tokens.features.dtype)
        fresh = place not in _LOOKED_AT
        look = (fresh or tokens.features.device.type == "cpu") and not torch.compiler.is_compiling()
        _LOOKED_AT.add(place)
        for signal in tokens.holding_nan() if look else ():
            at = tokens.stage if tokens.layer is None else f"{tokens.stage} layer {tokens.layer}"
            warnings.warn(
                f"method={self.name!r} at {at} ranks by {signal}, which holds NaN ({tokens.features.dtype}): tokens of NaN "
                "score come first, whatever they show. Run the model in bfloat16 or float32",
                stacklevel=2,
            )
        reduction = self.reduce(tokens)
        if not isinstance(reduction, Reduction):
            found = f"{type(self).__name__}.reduce returned a {type(reduction).__name__}; allowed: a Reduction, from "
            raise TypeError(f"{found}Reduction.top, .select, .merge or .identity")
        own = type(self).__module__.startswith(f"{__package__}.")
        return reduction.check(tokens, values=look and (fresh or not own))

    def checked_together(self, groups: Sequence[VisualTokens]) -> list[Reduction]:
        """``checked`` for each of ``groups``, all images of a pass of a tower; overridden where they are seen together."""
        return [self.checked(tokens) for tokens in groups]


def registered() -> dict[str, type[Method]]:
    """The methods defined so far by name, baselines last."""
    return dict(sorted(_REGISTERED.items(), key=lambda item: (item[1].paper == "", item[0])))
