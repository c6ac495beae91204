"""What several commands read from their arguments: budgets, and methods with parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenreduce.eval.recipe import budget, literal

if TYPE_CHECKING:
    from tokenreduce.method import Method


def chosen_methods(
    names: list[str], keep: str | None, parameters: list[str], positions: str | None, imports: list[str] | None
) -> list[Method]:
    """Instances from what stands on the command line, once ``imports`` are imported."""
    from tokenreduce import own_methods
    from tokenreduce.registry import make, named

    own_methods.load(imports or ())
    split = [named(name) for name in names]
    given: list[dict[str, Any]] = [{"keep": budget(own, f"--method {name}:")} if own else {} for name, own in split]
    if keep is not None:
        if len(names) > 1 or given[0]:
            raise ValueError(
                f"--keep={keep} is ambiguous beside {' '.join(f'--method {name}' for name in names)}; "
                "write each budget behind its method, for example --method fastervlm:0.5 --method fastv:64"
            )
        given[0]["keep"] = budget(keep, "--keep")
    for text in parameters:
        path, equals, value = text.partition("=")
        owner, dot, key = path.rpartition(".")
        places = [i for i, (name, _) in enumerate(split) if not dot or name == owner]
        if not equals or not key or len(places) != 1:
            raise ValueError(
                f"--parameter={text!r}; allowed: key=value for a single method, or method.key=value with one of "
                f"{', '.join(name for name, _ in split)}. For example -p layer=2 or -p fastv.layer=2"
            )
        given[places[0]][key] = literal(value)
    for settings in given:
        if positions is not None:
            settings["positions"] = positions
    return [make(name, **settings) for (name, _), settings in zip(split, given)]


def method_names(text: str | None, imports: list[str] | None) -> list[str] | None:
    """Names separated by commas, once ``imports`` are imported; None for no text."""
    from tokenreduce import own_methods
    from tokenreduce.registry import named

    own_methods.load(imports or ())
    return None if text is None else [named(part)[0] for part in text.split(",") if part.strip()]


def mapping(text: str, argument: str) -> dict[str, Any]:
    """``key=value`` pairs separated by commas; values are Python literals or text."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError(f"{argument}={text!r}; allowed: key=value pairs separated by commas, such as dtype=bfloat16")
    return {key.strip(): literal(value) for key, _, value in pairs}
