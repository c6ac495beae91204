"""Pictures of what is left: kept tokens over the original pixels, merged groups in their mean colour.

>>> from tokenreduce.draw import compare, draw
>>> # draw(tr.trace(model), photo, processor).save("kept.png")
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenreduce.provenance import ImageTrace, Trace
    from tokenreduce.tokens import Layout

WHITE, BLACK, INK = (255, 255, 255), (0, 0, 0), (34, 34, 34)
PALE, GRAY, DARK, TINT = (120, 120, 120), (150, 150, 150), (55, 55, 55), (176, 112, 72)
# Roles 1, 2, 3, ...: white, and colours of Okabe and Ito's palette, which readers with any common colour vision tell
# apart; the first role also has the thickest outline.
ROLE_COLORS = ((230, 159, 0), (86, 180, 233), (255, 255, 255), (204, 121, 167), (0, 158, 115))
MERGED = 1000  # kinds of pixels: merged groups count from here


def cell_boxes(image_size: tuple[int, int], processor: Any, layout: Layout) -> np.ndarray:
    """Where each visual token looks: (N, 4) float64 left, top, right, bottom in pixels of the original image.

    Undoes the processor's steps in reverse: centre crop, resize, padding to a square. Boxes may reach beyond the image
    where the processor padded it. Every frame of a video has the same boxes.

    Args:
        image_size: (width, height) of the original image, pixels.
        processor: the model's processor or its image processor, or a dictionary of the same settings (``do_resize``,
            ``size``, ``do_center_crop``, ``crop_size``, ``do_pad``). None: the grid covers the whole image.
        layout: grid of the N tokens.
    """
    left, top, right, bottom = seen_box(image_size, processor)
    cell = np.arange(layout.num_tokens) if layout.cells is None else np.asarray(layout.cells)
    row, column = cell // layout.width % layout.height, cell % layout.width
    x = left + (right - left) * np.arange(layout.width + 1) / layout.width
    y = top + (bottom - top) * np.arange(layout.height + 1) / layout.height
    return np.stack([x[column], y[row], x[column + 1], y[row + 1]], axis=1)


def seen_box(image_size: tuple[int, int], processor: Any) -> tuple[float, float, float, float]:
    """Left, top, right, bottom, in original pixels, of what the vision tower is given; arguments as ``cell_boxes``."""
    images = getattr(processor, "image_processor", processor)

    def setting(name: str) -> Any:
        return images.get(name) if isinstance(images, dict) else getattr(images, name, None)

    width, height = image_size
    origin = (0.0, 0.0)
    if setting("do_pad") and setting("do_center_crop"):  # LLaVA's own processor squares the image with a border first
        side = max(width, height)
        origin = (-float((side - width) // 2), -float((side - height) // 2))
        width = height = side
    whole = (origin[0], origin[1], origin[0] + width, origin[1] + height)
    if not setting("do_center_crop"):
        return whole
    resized = (width, height)
    if setting("do_resize"):
        resized = _resized(width, height, setting("size"))
    scale = (width / resized[0], height / resized[1])
    crop = (_entry(setting("crop_size"), "width"), _entry(setting("crop_size"), "height"))
    # A crop larger than the image pads it; both round like transformers' center_crop.
    start = [(r - c) // 2 if r >= c else -((c - r) // 2) for r, c in zip(resized, crop)]
    low = [o + s * k for o, s, k in zip(origin, start, scale)]
    return low[0], low[1], low[0] + crop[0] * scale[0], low[1] + crop[1] * scale[1]


def _resized(width: int, height: int, size: Any) -> tuple[int, int]:
    shortest = _entry(size, "shortest_edge")
    if shortest and not _entry(size, "longest_edge"):
        short, long = sorted((width, height))
        other = int(shortest * long / short)
        return (shortest, other) if width <= height else (other, shortest)
    if _entry(size, "height") and _entry(size, "width"):
        return _entry(size, "width"), _entry(size, "height")
    raise ValueError(
        f"size={size!r} of the image processor followed by a centre crop cannot be drawn; allowed: shortest_edge, or "
        "height and width. Pass processor=None to lay the grid over the whole image."
    )


def _entry(size: Any, name: str) -> Any:
    return size.get(name) if hasattr(size, "get") else getattr(size, name, None)


def draw(
    trace: Trace | ImageTrace,
    image: Image.Image,
    processor: Any = None,
    *,
    index: int = 0,
    frame: int = 0,
    caption: bool | str = True,
    side: int = 640,
) -> Image.Image:
    """Kept tokens in their own pixels, dropped ones dark and grey, merged groups in their mean colour.

    Outlines surround kept regions and merged groups, coloured by role where the method names roles. Parts of the image
    that the processor cuts off are pale and hatched.

    Args:
        trace: ``tr.trace(model)``, or one of its ``images``.
        image: the original image (for a video, the frame ``frame``), as it was given to the processor.
        processor: see ``cell_boxes``.
        index: which image of a ``Trace``, in the order of the call, from 0.
        frame: which frame of a video, from 0.
        caption: True writes counts and a legend below the picture, a text is written instead of the counts.
        side: length of the longer side of the picture, pixels.

    Returns:
        An RGB picture; with a caption it is higher by a few lines.

    Errors: ``ValueError`` for an index or frame that the trace does not have.
    """
    shown = _one(trace, index)
    layout = shown.layout
    if not 0 <= frame < layout.frames:
        raise ValueError(f"frame={frame}; allowed: 0 to {layout.frames - 1}, the frames of this image")
    owner, role, names = _fate(shown)
    boxes = cell_boxes(image.size, processor, layout)
    zoom = side / max(image.size)
    size = (max(1, round(image.width * zoom)), max(1, round(image.height * zoom)))
    pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), dtype=np.float32)
    boxes = boxes * np.tile([size[0] / image.width, size[1] / image.height], 2)
    token = _token_at(boxes, size, layout, frame)
    counts = np.bincount(owner[owner >= 0], minlength=int(owner.max(initial=0)) + 1)
    merged = (owner >= 0) & (counts[owner] > 1)
    # What a pixel belongs to: a merged group (from MERGED on), a kept role (0 or more), dropped (-1), not seen (-2).
    kind = np.where(merged, owner + MERGED, np.where(owner >= 0, role, -1))
    kinds = np.where(token >= 0, kind[token], -2).astype(np.int32)
    canvas = _paint(pixels, np.where((token >= 0) & merged[token], owner[token], -1), kinds)
    _outline(canvas, kinds, max(1, round(side / 320)))
    picture = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    if caption is False:
        return picture
    text = caption if isinstance(caption, str) else describe(shown)
    return _captioned(picture, text, _legend(owner, role, merged, names, boxes, size))


def describe(image: ImageTrace) -> str:
    """One line: which method left how many of how many tokens, for example ``hiprune: 36 of 144 tokens``."""
    if not image.stages:
        return f"all {image.tokens_in} tokens kept"
    parts = {}  # a method that acts in many layers counts by its last one
    for stage in image.stages:
        place = f" after {stage.layer} decoder layers" if stage.stage == "llm" and stage.layer is not None else ""
        parts[stage.method, stage.stage] = f"{stage.method}: {len(stage.source)} of {image.tokens_in} tokens{place}"
    summaries = int((image.stages[-1].source < 0).sum())
    return ", then ".join(parts.values()) + (f", {summaries} of them summaries" if summaries else "")


def summarize(image: ImageTrace) -> str:
    """The same in a few words, for a caption: ``120 → 59 of 144 tokens``."""
    counts = [len(stage.source) for stage in image.stages]
    steps = [
        n for i, n in enumerate(counts) if i + 1 == len(counts) or image.stages[i].stage != image.stages[i + 1].stage
    ]
    path = " → ".join(str(n) for i, n in enumerate(steps) if i == 0 or n != steps[i - 1])
    if not path:
        return f"all {image.tokens_in} tokens"
    late = [stage.layer for stage in image.stages if stage.stage == "llm"]
    return f"{path} of {image.tokens_in} tokens" + (f", layer {late[-1]} on" if late else "")


def figure(trace: Trace | ImageTrace, image: Image.Image, processor: Any = None, **options: Any) -> Figure:
    """``draw`` as a matplotlib figure of its own, without pyplot; arguments as ``draw``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = draw(trace, image, processor, **options)
    made = Figure(figsize=(picture.width / 100, picture.height / 100), dpi=100)
    FigureCanvasAgg(made)
    axes = made.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(np.asarray(picture))
    axes.set_axis_off()
    return made


def compare(
    images: Sequence[Image.Image | None],
    titles: Sequence[str],
    columns: Sequence[str] | int,
    *,
    rows: Sequence[str] = (),
    heading: str = "",
    tile: int = 240,
) -> Image.Image:
    """A labelled contact sheet, for example one column per method and one row per budget.

    Args:
        images: row by row; None leaves a place empty. All are scaled to ``tile`` pixels width.
        titles: one or a few lines below each image, as many as images.
        columns: names of the columns, or just their number.
        rows: names of the rows.
        heading: lines above everything.

    Errors: ``ValueError`` when the numbers do not fit.
    """
    names = [""] * columns if isinstance(columns, int) else list(columns)
    lines = -(-len(images) // max(1, len(names)))
    if not images or not names or len(titles) != len(images) or (rows and len(rows) != lines):
        raise ValueError(
            f"images={len(images)}, titles={len(titles)}, columns={len(names)}, rows={len(rows)}; allowed: one title "
            "per image, at least one column, and no row names or one per row of images"
        )
    gap, text, bold = 10, _font(15), _font(17, bold=True)
    scaled = [
        i and i.resize((tile, max(1, round(i.height * tile / i.width))), Image.Resampling.LANCZOS) for i in images
    ]
    high = max((i.height for i in scaled if i), default=tile)
    step_x, step_y = tile + gap, high + gap + 20 * max(len(title.splitlines()) for title in titles)
    left = gap + max((round(bold.getlength(line)) + gap for name in rows for line in name.split("\n")), default=0)
    top = gap + 24 * len(heading.splitlines()) + gap * bool(heading) + 26 * any(names)
    widest = max(round(bold.getlength(line)) for line in heading.splitlines() or [""])
    sheet = Image.new("RGB", (max(left + len(names) * step_x, widest + 2 * gap), top + lines * step_y), WHITE)
    pen = ImageDraw.Draw(sheet)
    pen.multiline_text((gap, gap), heading, fill=INK, font=bold, spacing=6)
    for i, name in enumerate(names):
        pen.text((left + i * step_x + tile / 2, top - 6), name, fill=INK, font=_fit(name, bold, tile), anchor="md")
    for i, name in enumerate(rows):
        pen.multiline_text((gap, top + i * step_y + high / 2), name, fill=INK, font=bold, anchor="lm")
    for i, (picture, title) in enumerate(zip(scaled, titles)):
        x, y = left + i % len(names) * step_x, top + i // len(names) * step_y
        if picture:
            sheet.paste(picture, (x, y))
        for number, line in enumerate(title.splitlines()):
            pen.text((x + tile / 2, y + high + 3 + 20 * number), line, INK, _fit(line, text, tile), anchor="ma")
    return sheet


def legend(roles: Sequence[str] = (), cut_off: bool = False, width: int = 240) -> Image.Image:
    """A key to ``draw``, to be placed in ``compare``; ``roles`` as ``StageTrace.role_names``, of which 0 is dropped."""
    plain = [name for i, name in enumerate(roles) if i and role_color(i) == WHITE]
    swatches: list[Swatch] = [(" / ".join(["kept", *plain]), GRAY, WHITE)]
    swatches += [(name, GRAY, role_color(i)) for i, name in enumerate(roles) if i and name not in plain]
    swatches += [("merged: the mean colour", TINT, WHITE), ("dropped", DARK, DARK)]
    return _key(swatches + [("cut off, not seen", None, PALE)] * cut_off, width)


def _one(trace: Trace | ImageTrace, index: int) -> ImageTrace:
    images = getattr(trace, "images", None)
    if images is None:
        return trace  # type: ignore[return-value]
    if not 0 <= index < len(images):
        raise ValueError(f"index={index}; allowed: 0 to {len(images) - 1}, the images of this prompt")
    return images[index]


def _fate(image: ImageTrace) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """(N0,) row that stands for each original token or -1, (N0,) its role or 0, and the names of the roles."""
    before = np.arange(image.tokens_in)
    role, names = np.zeros(image.tokens_in, dtype=int), tuple[str, ...]()
    for stage in image.stages:
        if stage.role is not None:
            given = np.asarray(stage.role)
            # given per token that entered the stage, which before it stood for the originals ``before``
            role = given if len(given) == image.tokens_in else np.where(before >= 0, given[before], 0)
            names = stage.role_names
        before = np.asarray(stage.assign)
    return before, np.where(before >= 0, role, 0), names


def _token_at(boxes: np.ndarray, size: tuple[int, int], layout: Layout, frame: int) -> np.ndarray:
    """(height, width) long, the token of ``frame`` that looks at each pixel of a picture of ``size``; -1: none."""
    spans = np.rint(boxes).astype(int).clip(0, np.tile(size, 2))
    cells = np.arange(layout.num_tokens) if layout.cells is None else np.asarray(layout.cells)
    token = np.full(size[::-1], -1)
    for number in np.flatnonzero(cells // (layout.height * layout.width) == frame):
        left, top, right, bottom = spans[number]
        token[top:bottom, left:right] = number
    return token


def _paint(pixels: np.ndarray, group: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Each pixel (height, width, 3) by its fate; ``group`` (height, width) is its merged group or -1."""
    gray = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    y, x = np.ogrid[: gray.shape[0], : gray.shape[1]]
    unseen, out = kinds == -2, pixels.copy()
    out[unseen] = (170 + gray[unseen] / 3)[:, None]
    out[unseen & ((x + y) % 12 < 2)] = PALE
    out[kinds == -1] = gray[kinds == -1][:, None] * 0.36
    members = group >= 0
    if members.any():
        index = group[members]
        area = np.bincount(index).clip(1)
        mean = np.stack([np.bincount(index, weights=pixels[members][:, c]) / area for c in range(3)], axis=1)
        out[members] = mean[index]
    return out


def _outline(canvas: np.ndarray, kinds: np.ndarray, width: int) -> None:
    """Draw, in place, outlines inside the regions of equal ``kinds``; a dark rim shows them on bright pixels."""

    def border(reach: int) -> np.ndarray:
        """Pixels of kept regions with another kind not further than ``reach`` pixels away, or at the picture's edge."""
        padded, (height, width) = np.pad(kinds, reach, constant_values=-3), kinds.shape
        shifts = product((0, reach, 2 * reach), repeat=2)  # cells are wider than ``reach``: its far end is enough
        return reduce(np.logical_or, (padded[y : y + height, x : x + width] != kinds for y, x in shifts)) & (kinds >= 0)

    ring = border(1 + width)
    canvas[ring] = WHITE
    for role in np.unique(kinds[(kinds > 0) & (kinds < MERGED)]):
        # the first role has twice the width
        canvas[(ring if role > 1 else border(1 + 2 * width)) & (kinds == role)] = role_color(role)
    canvas[border(1)] = BLACK


def role_color(role: int) -> tuple[int, int, int]:
    """RGB outline of tokens of ``role``; 0, no role, is white."""
    return ROLE_COLORS[(role - 1) % len(ROLE_COLORS)] if role else WHITE


Swatch = tuple[str, tuple[int, int, int] | None, tuple[int, int, int]]  # label, fill (None: hatched), outline


def _legend(
    owner: np.ndarray,
    role: np.ndarray,
    merged: np.ndarray,
    names: tuple[str, ...],
    boxes: np.ndarray,
    size: tuple[int, int],
) -> list[Swatch]:
    """What occurs in the picture, with counts of original tokens."""
    single = (owner >= 0) & ~merged
    found: list[Swatch] = []
    for number in sorted(set(role[single].tolist())):
        label = names[number] if 0 < number < len(names) else "kept"
        found.append((f"{label} {int((single & (role == number)).sum())}", GRAY, role_color(number)))
    if merged.any():
        groups = len(set(owner[merged].tolist()))
        found.append((f"{int(merged.sum())} merged into {groups} means", TINT, WHITE))
    if (owner < 0).any():
        found.append((f"dropped {int((owner < 0).sum())}", DARK, DARK))
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    if (low > 0.5).any() or (high < np.array(size) - 0.5).any():
        found.append(("cut off, not seen", None, PALE))
    return found


def _captioned(picture: Image.Image, text: str, swatches: list[Swatch]) -> Image.Image:
    key, pad, font = _key(swatches, picture.width), 8, _font(17, bold=True)
    out = Image.new("RGB", (picture.width, picture.height + pad + 24 + key.height), WHITE)
    out.paste(picture, (0, 0))
    out.paste(key, (0, out.height - key.height))
    pen = ImageDraw.Draw(out)
    pen.text((pad, picture.height + pad), text, fill=INK, font=_fit(text, font, picture.width - 2 * pad))
    return out


def _key(swatches: list[Swatch], width: int) -> Image.Image:
    """Swatches with their labels, from left to right and then in further lines, on white."""
    font, pad, line = _font(14), 8, 24
    places, x, y = [], pad, 0
    for label, _, _ in swatches:
        length = 38 + round(font.getlength(label))
        if x > pad and x + length > width:
            x, y = pad, y + line
        places.append((x, y))
        x += length
    out = Image.new("RGB", (width, y + line + pad // 2), WHITE)
    pen = ImageDraw.Draw(out)
    for (x, y), (label, fill, outline) in zip(places, swatches):
        pen.rectangle((x, y + 2, x + 15, y + 17), fill=fill or (225, 225, 225), outline=BLACK)
        if fill is None:
            pen.line((x + 1, y + 15, x + 8, y + 4), fill=outline, width=2)
            pen.line((x + 7, y + 15, x + 14, y + 4), fill=outline, width=2)
        elif outline != fill:
            pen.rectangle((x + 1, y + 3, x + 14, y + 16), outline=outline, width=3)
        pen.text((x + 21, y), label, fill=INK, font=font)
    return out


def _font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _fit(text: str, font: ImageFont.FreeTypeFont, room: float) -> ImageFont.FreeTypeFont:
    """``font``, smaller where ``text`` is longer than ``room`` pixels, but never below 9."""
    length = font.getlength(text)
    return font if length <= room else font.font_variant(size=max(9, int(font.size * room / length)))
