"""Methods against each other on one prompt: what each keeps, what the model then answers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

from tokenreduce.answers import answer
from tokenreduce.draw.image_grid import image_grid
from tokenreduce.draw.model_view import pixels_of
from tokenreduce.draw.prompt import draw_picture, images_of_picture
from tokenreduce.draw.stages import summarize
from tokenreduce.draw.token_map import token_map
from tokenreduce.method import Method
from tokenreduce.registry import make
from tokenreduce.wrapping import is_wrapped

if TYPE_CHECKING:
    from PIL import Image
    from torch import nn


def compare(
    model: nn.Module,
    inputs: Mapping[str, Any],
    methods: Sequence[str | Method | type[Method]],
    keep: float | int | Sequence[float | int] = (0.5, 0.25, 0.1),
    *,
    image: Any = None,
    processor: Any = None,
    index: int = 0,
    max_new_tokens: int = 32,
    images_as_video: bool = False,
    tile: int = 240,
    **options: Any,
) -> Image.Image:
    """A grid of pictures: columns are methods, rows are budgets, with the model's answer and the token count under each.

    Args:
        model: a model that is not wrapped; it is the same afterwards.
        inputs: what it is called with.
        methods: names (``tr.methods()``), classes or instances.
        keep: one budget or several, each a fraction in (0, 1] or a count.
        image: the original image, or the frames of a video. None: the pixels that the vision tower is given where they
            come as images, else a map of the tokens.
        processor: undoes the geometry of ``image`` and decodes the answers; None: no answers.
        index: which image of the prompt is shown.
        max_new_tokens: longest answer, tokens.
        images_as_video: see ``tr.wrap``.
        tile: width of each picture, pixels.
        options: of ``draw``, such as ``heat=True``.

    Errors: those of ``tr.wrap`` and ``draw``.

    Example: ``tr.compare(model, inputs, ["hiprune", "fastv"], keep=[0.5, 0.1], image=photo, processor=processor)``
    """
    if is_wrapped(model):
        raise ValueError("model is wrapped; compare wraps it itself: call tr.unwrap(model) first")
    keeps = list(keep) if isinstance(keep, Sequence) else [keep]
    if not methods or not keeps:
        raise ValueError(f"methods={list(methods)!r}, keep={keeps!r}; allowed: at least one of each")
    made = [make(method) for method in methods]
    given = image if image is not None else pixels_of(inputs, index)
    undo = processor if image is not None else None
    style = {"caption": False, "side": 2 * tile, **options}
    images, titles = [], []
    for budget in keeps:
        for method in made:
            found = answer(model, inputs, [make(method, keep=budget)], processor, max_new_tokens, images_as_video)
            assert found.trace is not None
            parts = images_of_picture(found.trace, given, undo, index)
            over = partial(draw_picture, found.trace, given, undo, index=index)
            images.append(token_map(parts[0], **style) if given is None else over(**style))
            titles.append(_title(summarize(*parts), found.texts[parts[0].sample :][:1]))
    whole = answer(model, inputs, (), processor, max_new_tokens).texts
    images = _with_first(given[len(given) // 2] if isinstance(given, Sequence) else given, images, len(made))
    titles = _with_first(_title("every token", whole[parts[0].sample :][:1]), titles, len(made), "")
    return image_grid(images, titles, ["picture", *map(_label, made)], rows=[f"keep\n{k:g}" for k in keeps], tile=tile)


def _with_first(first: Any, cells: list[Any], columns: int, empty: Any = None) -> list[Any]:
    """``cells`` row by row with one more column in front: ``first``, then nothing."""
    starts = range(0, len(cells), columns)
    return [cell for at in starts for cell in (empty if at else first, *cells[at : at + columns])]


def _label(method: Method) -> str:
    """Its name, and what else than the budget is not as usual."""
    own = [(f.name, getattr(method, f.name)) for f in fields(method) if f.name != "keep"]
    usual = {f.name: f.default for f in fields(method)}
    return " ".join([method.name, *(f"{name}={value}" for name, value in own if value != usual[name])])


def _title(count: str, texts: tuple[str, ...]) -> str:
    lines = [line for text in texts for line in textwrap.wrap(f'"{textwrap.shorten(text, 120)}"', 34)]
    return "\n".join([count, *lines])
