"""Pictures of what is left: kept tokens over the original pixels, merged groups in their mean colour.

>>> from tokenreduce.draw import compare, draw
>>> # draw(tr.trace(model), photo, processor).save("kept.png")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenreduce.provenance import ImageTrace, Trace
    from tokenreduce.tokens import Layout

WHITE, BLACK, INK, PALE = (255, 255, 255), (0, 0, 0), (34, 34, 34), (120, 120, 120)
# Roles 1, 2, 3, ... in Okabe and Ito's colours, which readers with any common colour vision tell apart; the first
# role also has the thickest outline.
ROLE_COLORS = ((230, 159, 0), (86, 180, 233), (255, 255, 255), (204, 121, 167), (0, 158, 115))
SIDES = ((0, -1), (-1, 0), (0, 1), (1, 0))  # (row, column) step to the left, upper, right and lower neighbour


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
    spans = np.rint(boxes).astype(int).clip(0, np.tile(size, 2))

    cells = np.arange(layout.num_tokens) if layout.cells is None else np.asarray(layout.cells)
    per_frame = layout.height * layout.width
    tokens = np.flatnonzero(cells // per_frame == frame)
    group_size = np.bincount(owner[owner >= 0], minlength=int(owner.max(initial=-1)) + 1)
    merged = (owner >= 0) & (group_size[owner] > 1)
    picture = _paint(pixels, spans, tokens, owner, merged)

    # What a cell belongs to: a merged group, the kept region of a role, or nothing. Outlines run where it changes.
    kind = np.where(merged, owner + len(names) + 1, np.where(owner >= 0, role, -1))
    grid = np.full((layout.height + 2, layout.width + 2), -1)
    where = cells[tokens] % per_frame
    grid[where // layout.width + 1, where % layout.width + 1] = kind[tokens]
    pen = ImageDraw.Draw(picture)
    for token in tokens[owner[tokens] >= 0]:
        place = cells[token] % per_frame
        row, column = place // layout.width + 1, place % layout.width + 1
        sides = [grid[row + dy, column + dx] != kind[token] for dy, dx in SIDES]
        colour, width = _outline(int(role[token]), bool(merged[token]), side)
        _strips(pen, spans[token], sides, colour, width)
    if caption is False:
        return picture
    text = caption if isinstance(caption, str) else describe(shown)
    return _captioned(picture, text, _legend(owner, role, merged, names, boxes, size))


def describe(image: ImageTrace) -> str:
    """One line: which method left how many of how many tokens, for example ``hiprune: 36 of 144 tokens``."""
    if not image.stages:
        return f"all {image.tokens_in} tokens kept"
    parts = []
    for stage in image.stages:
        place = f" after {stage.layer} decoder layers" if stage.stage == "llm" and stage.layer is not None else ""
        parts.append(f"{stage.method}: {len(stage.source)} of {image.tokens_in} tokens{place}")
    summaries = int((image.stages[-1].source < 0).sum())
    return ", then ".join(parts) + (f", {summaries} of them summaries" if summaries else "")


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
        titles: one line below each image, as many as images.
        columns: names of the columns, or just their number.
        rows: names of the rows.
        heading: lines above everything.

    Errors: ``ValueError`` when the numbers do not fit.
    """
    names = [""] * columns if isinstance(columns, int) else list(columns)
    count = len(names)
    lines = -(-len(images) // count) if count else 0
    if not images or not count or len(titles) != len(images) or (rows and len(rows) != lines):
        raise ValueError(
            f"images={len(images)}, titles={len(titles)}, columns={count}, rows={len(rows)}; allowed: one title per "
            "image, at least one column, and no row names or one per row of images"
        )
    gap, text, head = 10, _font(15), _font(17, bold=True)
    scaled = [
        None if i is None else i.resize((tile, max(1, round(i.height * tile / i.width))), Image.Resampling.LANCZOS)
        for i in images
    ]
    high = max((i.height for i in scaled if i is not None), default=tile)
    row_high = high + (24 if any(titles) else 0) + gap
    margin = gap + max((round(head.getlength(line)) + gap for name in rows for line in name.split("\n")), default=0)
    top = gap + (24 * len(heading.splitlines()) + gap if heading else 0)
    body = top + (26 if any(names) else 0)
    width = max(margin + count * (tile + gap), *(2 * gap + round(head.getlength(h)) for h in heading.splitlines() or [""]))
    sheet = Image.new("RGB", (width, body + lines * row_high), WHITE)
    pen = ImageDraw.Draw(sheet)
    pen.multiline_text((gap, gap), heading, fill=INK, font=head, spacing=6)
    for i, name in enumerate(names):
        pen.text((margin + i * (tile + gap) + tile / 2, top), name, fill=INK, font=head, anchor="ma")
    for i, name in enumerate(rows):
        pen.multiline_text((gap, body + i * row_high + high / 2), name, fill=INK, font=head, anchor="lm")
    for i, (picture, title) in enumerate(zip(scaled, titles)):
        if picture is None:
            continue
        x, y = margin + i % count * (tile + gap), body + i // count * row_high
        sheet.paste(picture, (x, y))
        pen.text((x + tile / 2, y + high + 3), title, fill=INK, font=_fit(title, text, tile), anchor="ma")
    return sheet


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
    role, names = np.zeros(image.tokens_in, dtype=int), ()
    for stage in image.stages:
        if stage.role is not None:
            given = np.asarray(stage.role)
            # given per token that entered the stage, which before it stood for the originals ``before``
            role = given if len(given) == image.tokens_in else np.where(before >= 0, given[before], 0)
            names = stage.role_names
        before = np.asarray(stage.assign)
    return before, np.where(before >= 0, role, 0), names


def _paint(pixels: np.ndarray, spans: np.ndarray, tokens: np.ndarray, owner: np.ndarray, merged: np.ndarray) -> Image.Image:
    """Every pixel by its fate: unseen pale and hatched, dropped dark grey, kept as it is, merged the group's mean."""
    gray = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    out = np.repeat((170 + gray / 3)[..., None], 3, axis=2)
    y, x = np.indices(gray.shape)
    out[(x + y) % 12 < 2] = PALE
    areas = {int(t): (slice(spans[t][1], spans[t][3]), slice(spans[t][0], spans[t][2])) for t in tokens}
    groups: dict[int, list[int]] = {}
    for token, area in areas.items():
        if owner[token] < 0:
            out[area] = gray[area][..., None] * 0.36
        elif merged[token]:
            groups.setdefault(int(owner[token]), []).append(token)
        else:
            out[area] = pixels[area]
    for members in groups.values():
        seen = [pixels[areas[t]].reshape(-1, 3) for t in members]
        mean = np.concatenate(seen).mean(axis=0) if sum(map(len, seen)) else np.zeros(3)
        for token in members:
            out[areas[token]] = mean
    return Image.fromarray(out.clip(0, 255).astype(np.uint8))


def _outline(role: int, merged: bool, side: int) -> tuple[tuple[int, int, int], int]:
    """Colour and width, in pixels, of the outline of a kept token."""
    thin = max(1, round(side / 320))
    if role and not merged:
        return ROLE_COLORS[(role - 1) % len(ROLE_COLORS)], 2 * thin if role == 1 else thin
    return WHITE, thin if not merged else max(1, thin // 2)


def _strips(pen: ImageDraw.ImageDraw, span: np.ndarray, sides: list[Any], colour: tuple[int, int, int], width: int) -> None:
    """Outline strips inside a cell along the sides that are marked; a dark rim keeps them visible on bright pixels."""
    left, top, right, bottom = (int(v) for v in span)
    if right <= left or bottom <= top:
        return
    for inset, thickness, fill in ((0, 1, BLACK), (1, width, colour)):
        last = inset + thickness - 1
        strips = (
            (left + inset, top, left + last, bottom - 1),
            (left, top + inset, right - 1, top + last),
            (right - 1 - last, top, right - 1 - inset, bottom - 1),
            (left, bottom - 1 - last, right - 1, bottom - 1 - inset),
        )
        for strip, marked in zip(strips, sides):
            if marked:
                pen.rectangle(strip, fill=fill)


Swatch = tuple[str, tuple[int, int, int] | None, tuple[int, int, int]]  # label, fill (None: hatched), outline


def _legend(
    owner: np.ndarray, role: np.ndarray, merged: np.ndarray, names: tuple[str, ...], boxes: np.ndarray, size: tuple[int, int]
) -> list[Swatch]:
    """What occurs in the picture, with counts of original tokens."""
    single = (owner >= 0) & ~merged
    found: list[Swatch] = []
    for number in sorted(set(role[single].tolist())):
        label = names[number] if 0 < number < len(names) else "kept"
        colour = _outline(number, False, 320)[0]
        found.append((f"{label} {int((single & (role == number)).sum())}", (150, 150, 150), colour))
    if merged.any():
        groups = len(set(owner[merged].tolist()))
        found.append((f"{int(merged.sum())} merged into {groups} means", (150, 150, 150), WHITE))
    if (owner < 0).any():
        found.append((f"dropped {int((owner < 0).sum())}", (55, 55, 55), (55, 55, 55)))
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    if (low > 0.5).any() or (high < np.array(size) - 0.5).any():
        found.append(("cut off, not seen", None, PALE))
    return found


def _captioned(picture: Image.Image, text: str, legend: list[Swatch]) -> Image.Image:
    font, small, pad = _font(17, bold=True), _font(14), 8
    room = picture.width - 2 * pad
    lines: list[list[Swatch]] = [[]]
    for swatch in legend:
        used = sum(38 + small.getlength(label) for label, _, _ in [*lines[-1], swatch])
        if lines[-1] and used > room:
            lines.append([])
        lines[-1].append(swatch)
    high = pad + 24 + 22 * len(lines) + pad // 2
    out = Image.new("RGB", (picture.width, picture.height + high), WHITE)
    out.paste(picture, (0, 0))
    pen = ImageDraw.Draw(out)
    y = picture.height + pad
    pen.text((pad, y), text, fill=INK, font=_fit(text, font, room))
    for number, line in enumerate(lines):
        x, top = float(pad), y + 24 + 22 * number
        for label, fill, outline in line:
            box = (x, top + 2, x + 15, top + 17)
            pen.rectangle(box, fill=(225, 225, 225) if fill is None else fill, outline=BLACK)
            if fill is None:
                for step in (5, 11):
                    pen.line((x + step - 4, top + 15, x + step + 2, top + 4), fill=outline, width=2)
            elif outline != fill:
                pen.rectangle((x + 1, top + 3, x + 14, top + 16), outline=outline, width=3)
            pen.text((x + 21, top), label, fill=INK, font=small)
            x += 38 + small.getlength(label)
    return out


def _font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _fit(text: str, font: ImageFont.FreeTypeFont, room: float) -> ImageFont.FreeTypeFont:
    """``font``, smaller where ``text`` is longer than ``room`` pixels, but never below 9."""
    length = font.getlength(text)
    return font if length <= room else font.font_variant(size=max(9, int(font.size * room / length)))
