"""Methods against each other on one prompt: what each keeps, what the model then answers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image

from tokenreduce.answers import answer
from tokenreduce.attachment import is_wrapped
from tokenreduce.draw.caption import WHITE, captioned
from tokenreduce.draw.heat_map import NEVER, RAMP
from tokenreduce.draw.image_grid import image_grid
from tokenreduce.draw.legend import GRAY, Color, Swatch, key, swatches_of
from tokenreduce.draw.model_view import pixels_of
from tokenreduce.draw.prompt import draw_picture, images_of_picture
from tokenreduce.draw.provenance_map import provenance_map
from tokenreduce.draw.stages import summarize
from tokenreduce.draw.token_map import on_one_grid, token_map
from tokenreduce.method import Method
from tokenreduce.provenance import ImageTrace
from tokenreduce.registry import make

if TYPE_CHECKING:
    from torch import nn

    from tokenreduce.traces import Trace

HEAT: list[Swatch] = [
    ("lowest score of its picture", RAMP[0], RAMP[0]),
    ("highest", RAMP[-1], RAMP[-1]),
    ("not ranked", NEVER, NEVER),
    ("kept", GRAY, WHITE),
]


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

    Budgets mean what each method means by them; the second line of a title says how many tokens the decoder really works on, as a
    mean over its layers. The key to the colours stands below.

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
    images, titles, seen = [], [], dict[Swatch, None]()
    for budget in keeps:
        for method in made:
            found = answer(model, inputs, [make(method, keep=budget)], processor, max_new_tokens, images_as_video)
            assert found.trace is not None
            assert found.report is not None
            parts = images_of_picture(found.trace, given, undo, index)
            over = partial(draw_picture, found.trace, given, undo, index=index)
            images.append(token_map(parts[0], **style) if given is None else over(**style))
            share = _share(parts, len(found.report.tokens_at_layer))
            titles.append(_title(f"{summarize(*parts)}\n{share}", found.texts[parts[0].sample :][:1]))
            seen |= dict.fromkeys(_swatches(found.trace, given, undo, index, parts))
    whole = answer(model, inputs, (), processor, max_new_tokens).texts
    images = _with_first(given[len(given) // 2] if isinstance(given, Sequence) else given, images, len(made))
    titles = _with_first(_title("every token", whole[parts[0].sample :][:1]), titles, len(made), "")
    rows = [f"keep\n{k:g}" for k in keeps]
    grid = image_grid(images, titles, ["picture", *map(_label, made)], rows=rows, tile=tile)
    return captioned(grid, "", key(HEAT if options.get("heat") else _alike(seen), grid.width))


def _swatches(trace: Trace, given: Any, undo: Any, index: int, parts: Sequence[ImageTrace]) -> list[Swatch]:
    """What occurs in one cell of the grid."""
    if given is None:
        flat, picture = on_one_grid(parts[0])
        return swatches_of(provenance_map(flat, picture.size), picture.size, counts=False)
    if isinstance(given, Image.Image):
        return swatches_of(provenance_map(trace, given.size, undo, index), given.size, counts=False)
    size, film = given[0].size, getattr(undo, "video_processor", undo)
    maps = [provenance_map(part, size, undo if part.layout.medium == "video" else film) for part in parts]
    return [swatch for tokens in maps for swatch in swatches_of(tokens, size, counts=False)]


def _alike(swatches: Iterable[Swatch]) -> list[Swatch]:
    """``swatches`` with those that look the same under one label: a role may have the plain white outline."""
    labels: dict[tuple[Color | None, Color], list[str]] = {}
    for label, fill, edge in swatches:
        labels.setdefault((fill, edge), []).append(label)
    return [(" / ".join(label), fill, edge) for (fill, edge), label in labels.items()]


def _share(parts: Sequence[ImageTrace], depth: int) -> str:
    """How much of the tokens the decoder works on: methods that act at different depths have unlike budgets."""
    whole = sum(part.tokens_in for part in parts)
    left = sum(len(part.kept(layer)) for part in parts for layer in range(depth))
    return f"{left / (whole * depth):.0%} over all layers"


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
    return "\n".join([count, *(f'"{textwrap.shorten(text, 120)}"' for text in texts)])
