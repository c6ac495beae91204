"""What is put on a model, as text and as data: ``fastervlm:0.5+fastv:64`` and its parameters."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenreduce.downscale import Downscale
    from tokenreduce.method import Method

UNREDUCED = "unreduced"


def budget(text: str, argument: str) -> float | int | str:
    """A budget from text: ``64`` is a count, ``0.25``, ``1/3`` and ``1.0`` are fractions, ``auto`` leaves it to the method."""
    from tokenreduce.budgets import Budget

    if text.strip().startswith("auto"):
        return Budget(text.strip()).keep
    try:
        if "/" in text:
            above, _, below = text.partition("/")
            value: float | int = float(above) / float(below)
        else:
            value = int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f"{argument}={text!r} is not a budget; allowed: a fraction in (0, 1] such as 0.33, 1/3 or 1.0, a count such "
            "as 64, or auto. For example --keep 0.25"
        ) from None
    return Budget(value).keep


def number(keep: float | int | str, argument: str) -> float | int:
    """A budget that is the same for every method and image. Errors: ``ValueError`` for one that a method finds by itself."""
    if isinstance(keep, str):
        raise ValueError(
            f"{argument}={keep!r}: methods are compared at the same budget here; allowed: a fraction such as 0.25, or a count "
            "such as 64"
        )
    return keep


def literal(text: str) -> Any:
    """A Python literal from text, ``true``, ``false`` and ``none`` in any case; other text stays text."""
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return text


@dataclass(frozen=True)
class Recipe:
    """Methods in the order a token meets them, none for the unreduced model; ``images_as_video`` as in ``tr.wrap``.

    ``downscale`` stands alone: it acts on pictures, and the model runs as it is.
    """

    methods: tuple[Method, ...] = ()
    images_as_video: bool = False

    def __post_init__(self) -> None:
        if self.downscale is not None and (len(self.methods) > 1 or self.images_as_video):
            beside = "images_as_video" if self.images_as_video else " + ".join(m.name for m in self.methods)
            raise ValueError(f"downscale cannot be combined ({beside}); allowed: downscale alone, picture by picture")

    @property
    def downscale(self) -> Downscale | None:
        """The baseline that scales pictures, where it is the recipe."""
        from tokenreduce.downscale import Downscale

        return next((m for m in self.methods if isinstance(m, Downscale)), None)

    @property
    def on_model(self) -> tuple[Method, ...]:
        """What the model is wrapped with: ``methods``, none for ``downscale``."""
        return () if self.downscale is not None else self.methods

    @classmethod
    def of(
        cls,
        names: str,
        keep: Any = None,
        parameters: Mapping[str, Any] | None = None,
        images_as_video: bool = False,
    ) -> Recipe:
        """A recipe from ``fastervlm:0.5+fastv:64``.

        ``keep`` is the budget of the methods that name none behind their colon. Parameters are ``key`` for a single
        method, ``method.key`` for one of several.

        Errors: ``ValueError`` and ``TypeError`` name the method or parameter and what is allowed.
        """
        from tokenreduce.registry import make, named

        if names.strip().lower() in ("", "none", UNREDUCED):
            if keep is not None or parameters:
                raise ValueError(f"{UNREDUCED!r} has no budget and no parameters; give a method, or leave them out")
            return cls()
        split = [named(name) for name in names.split("+")]
        given: list[dict[str, Any]] = []
        for name, own in split:
            budgeted = budget(own, f"{name}:") if own else keep
            given.append(
                {}
                if budgeted is None
                else {"keep": budget(budgeted, "keep") if isinstance(budgeted, str) else budgeted}
            )
        for path, value in (parameters or {}).items():
            owner, dot, key = path.rpartition(".")
            places = [i for i, (name, _) in enumerate(split) if not dot or name == owner]
            if len(places) != 1:
                raise ValueError(
                    f"parameter {path!r} does not belong to exactly one of {names}; write method.parameter, for example "
                    f"{split[0][0]}.{key}"
                )
            given[places[0]][key] = value
        return cls(tuple(make(name, **own) for (name, _), own in zip(split, given)), bool(images_as_video))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The inverse of ``as_dict``, in another process, too, as long as methods of one's own are where they were."""
        from tokenreduce.own_methods import found
        from tokenreduce.registry import catalogue, make

        for name, place in data.get("places", {}).items():
            if name not in catalogue():
                found(place)
        steps: Iterable[Mapping[str, Any]] = data["methods"]
        methods = tuple(make(s["method"], **{k: v for k, v in s.items() if k != "method"}) for s in steps)
        return cls(methods, data["images_as_video"])

    def as_dict(self) -> dict[str, Any]:
        """Plain values with every parameter, defaults too, and the places of methods from elsewhere."""
        from tokenreduce.own_methods import place_of

        steps = [{"method": m.name, **dataclasses.asdict(m)} for m in self.methods]
        places = {m.name: place for m in self.methods if (place := place_of(type(m))) is not None}
        return {"methods": steps, "images_as_video": self.images_as_video, **({"places": places} if places else {})}

    def with_seed(self, seed: int) -> Recipe:
        """The same with ``seed`` in every method that has one."""
        own: dict[str, Any] = {"seed": seed}
        methods = (
            dataclasses.replace(m, **own) if any(f.name == "seed" for f in dataclasses.fields(m)) else m
            for m in self.methods
        )
        return dataclasses.replace(self, methods=tuple(methods))

    @property
    def name(self) -> str:
        """Methods and what differs from their defaults, without budgets: the name of a curve."""
        parts = []
        for method in self.methods:
            changed = {
                f.name: getattr(method, f.name)
                for f in dataclasses.fields(method)
                if f.name != "keep" and getattr(method, f.name) != f.default
            }
            inner = ", ".join(f"{key}={value}" for key, value in changed.items())
            parts.append(f"{method.name}({inner})" if inner else method.name)
        return (" + ".join(parts) or UNREDUCED) + (" [as video]" if self.images_as_video else "")

    @property
    def keep(self) -> str:
        """The budgets as text, ``0.5`` or ``0.5 + 64``; 1.0 for the unreduced model."""
        return " + ".join(f"{m.keep:.4g}" if isinstance(m.keep, float) else str(m.keep) for m in self.methods) or "1.0"

    def __str__(self) -> str:
        return f"{self.name} keep={self.keep}" if self.methods else self.name
