"""A model of a type nobody knows, read as one of a family: whether everything is there that the family reads."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from tokenreduce.adapters.families.base import Family
from tokenreduce.adapters.families.refused import BY_TYPE
from tokenreduce.adapters.registry import LIKE, families, why_not


def family_like(model: Any, like: str) -> Family:
    """``model``, of a type nobody knows, as one of the family that ``like`` names as ``like:NAME``.

    Errors: ``ValueError`` for another name, for a model that is served or refused by itself, and, with a list, where what the
        family reads is missing.
    """
    known = {name: cls for name, cls in families().items() if issubclass(cls, Family)}
    name = like.removeprefix(LIKE)
    if not like.startswith(LIKE) or name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean '{LIKE}{near[0]}'?" if near else ""
        raise ValueError(f"family={like!r}; allowed: '{LIKE}NAME' with NAME one of {', '.join(known)}.{hint}")
    model_type = _type_of(model)
    if model_type in known:
        raise ValueError(
            f"family={like!r} is for models of unknown types; this {type(model).__name__} is of type {model_type!r}, which is "
            "served as it is: leave family out"
        )
    if model_type in BY_TYPE:
        raise ValueError(f"family={like!r}, but a model of type {model_type!r} {why_not(model_type)}")
    return _read_as(known[name], model, like)


def _read_as(cls: type[Family], model: Any, like: str) -> Family:
    """``model`` as one of family ``cls``, every fact read once.

    What its placeholders and its tower have to do with each other is found out at the first prompt, which raises where they
    do not fit.
    """
    missing: list[str] = []

    def read(what: str, how: Callable[[], Any]) -> Any:
        try:
            return how()
        except Exception as error:  # whatever a fact stumbles over is what the model lacks
            missing.append(f"{what} ({type(error).__name__}: {error})")
            return None

    family = read("what the family is built from", lambda: cls(model))
    if family is not None:
        facts = read("facts", family.offers)
        ids = read("placeholder ids", family.placeholder_ids)
        rows = read("input embeddings", lambda: model.get_input_embeddings().num_embeddings)
        if ids is not None and not ids:
            missing.append("placeholder ids (its configuration names no image_token_id)")
        for medium, token in (ids or {}).items():
            if not isinstance(token, int) or not 0 <= token < (rows or 0):
                missing.append(f"a placeholder of {medium}s (id {token!r} is no row of the {rows} input embeddings)")
        for tower in range(len(family.towers)):
            blocks = read(f"blocks of tower {tower}", lambda t=tower: family.layers(t))  # type: ignore[misc]
            if blocks is not None and facts is not None and facts.feature_block >= 0:
                read(
                    f"attention of tower {tower}",
                    lambda t=tower: family.tower_attention(facts.feature_block, t),  # type: ignore[misc]
                )
        read("projector", lambda: (family.projectors, family.projection()))
        read("attention of the decoder", lambda: family.decoder_attention(family.attending[0]))
        for noted in read("calls to note", family.noted_calls) or []:
            read("calls to note", lambda n=noted: getattr(n.owner, n.method))  # type: ignore[misc]
    if missing:
        raise ValueError(
            f"family={like!r} does not fit this {type(model).__name__} of type {_type_of(model)!r}; it lacks: "
            f"{'; '.join(missing)}. Name a family that is built the same (tokenreduce models), or state what differs in a file "
            "of its own: docs/adding_a_family.md"
        )
    return family


def _type_of(model: Any) -> Any:
    return getattr(getattr(model, "config", None), "model_type", None)
