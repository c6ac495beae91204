"""Pictures side by side under labels: a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from tokenreduce.draw.caption import INK, WHITE, font_of, one_size, wrapped


def image_grid(
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
        titles: one or a few lines below each image, as many as images; broken where they are too long, all in one size.
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
    gap, bold = 10, font_of(17, bold=True)
    below = [[part for line in title.splitlines() for part in wrapped(line, font_of(15), tile)] for title in titles]
    text, head = one_size([line for lines in below for line in lines], font_of(15), tile), one_size(names, bold, tile)
    scaled = [
        i and i.resize((tile, max(1, round(i.height * tile / i.width))), Image.Resampling.LANCZOS) for i in images
    ]
    high = max((i.height for i in scaled if i), default=tile)
    step_x, step_y = tile + gap, high + gap + 20 * max(map(len, below))
    left = gap + max((round(bold.getlength(line)) + gap for name in rows for line in name.split("\n")), default=0)
    top = gap + 24 * len(heading.splitlines()) + gap * bool(heading) + 26 * any(names)
    widest = max(round(bold.getlength(line)) for line in heading.splitlines() or [""])
    made = Image.new("RGB", (max(left + len(names) * step_x, widest + 2 * gap), top + lines * step_y), WHITE)
    pen = ImageDraw.Draw(made)
    pen.multiline_text((gap, gap), heading, fill=INK, font=bold, spacing=6)
    for i, name in enumerate(names):
        pen.text((left + i * step_x + tile / 2, top - 6), name, fill=INK, font=head, anchor="md")
    for i, name in enumerate(rows):
        pen.multiline_text((gap, top + i * step_y + high / 2), name, fill=INK, font=bold, anchor="lm")
    for i, (picture, own) in enumerate(zip(scaled, below)):
        x, y = left + i % len(names) * step_x, top + i // len(names) * step_y
        if picture:
            made.paste(picture, (x, y))
        for number, line in enumerate(own):
            pen.text((x + tile / 2, y + high + 3 + 20 * number), line, INK, text, anchor="ma")
    return made
