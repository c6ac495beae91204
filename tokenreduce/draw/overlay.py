"""Kept tokens over the original pixels, merged groups in their mean colour, scores as a heat map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tokenreduce.draw.canvas import Canvas, group_colors
from tokenreduce.draw.caption import captioned
from tokenreduce.draw.heat_map import color_bar, scale_of
from tokenreduce.draw.legend import key, swatches_of
from tokenreduce.draw.provenance_map import provenance_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenreduce.provenance import ImageTrace, PromptTrace


def draw(
    trace: PromptTrace | ImageTrace,
    image: Image.Image,
    processor: Any = None,
    *,
    index: int = 0,
    frame: int = 0,
    step: int | None = None,
    layer: int | None = None,
    heat: bool = False,
    caption: bool | str = True,
    side: int = 640,
) -> Image.Image:
    """Kept tokens in their own pixels, dropped ones dark and grey, those that never ran blue, merged groups in their mean colour.

    Outlines surround kept regions and merged groups, coloured by role where the method names roles. Parts of the image
    that the processor cuts off are pale and hatched. An image that the model saw whole and in tiles is drawn twice, side
    by side, the tiles in place.

    Args:
        trace: ``tr.trace(model)``, or one of its ``images``.
        image: the original image (for a video, the frame ``frame``), as it was given to the processor.
        processor: see ``cell_boxes``. None: ``image`` is what the model saw, nothing of it cropped or squeezed.
        index: which image of a ``Trace``, in the order of the call, from 0.
        frame: which frame of a video, from 0; a temporal patch counts as one frame.
        step: draw the image after so many of its stages, 0 for all tokens; ``step_names`` says what they are.
        layer: draw what decoder layer ``layer`` (from 0) works on. Neither: what is left in the end.
        heat: colour tokens by the score they were last ranked by; kept ones are outlined.
        caption: True writes counts and a legend below the picture, a text is written instead of the counts.
        side: length of the longer side of the picture, pixels.

    Returns:
        An RGB picture; with a caption it is higher by a few lines.

    Errors: ``ValueError`` for an index, frame, step or layer that the trace does not have, for a heat map where no method
        ranked, and, without a processor, for an image of other proportions than its grid of tokens.
    """
    tokens = provenance_map(trace, image.size, processor, index, step, layer)
    if not 0 <= frame <= tokens.frame.max(initial=0):
        raise ValueError(f"frame={frame}; allowed: 0 to {tokens.frame.max(initial=0)}, the frames of this image")
    if heat and tokens.score is None:
        raise ValueError("heat=True, but no method ranked the tokens of this image by a score; leave it out")
    score = tokens.score if heat else None
    ranks = None if score is None else scale_of(score)
    view = Canvas(image, side)
    shown = view.paint(tokens, frame, ranks, group_colors(tokens, [view], [frame]))
    if caption is False:
        return shown
    below = key(swatches_of(tokens, image.size), shown.width) if score is None else color_bar(score, shown.width)
    return captioned(shown, caption if isinstance(caption, str) else tokens.text, below)


def figure(trace: PromptTrace | ImageTrace, image: Image.Image, processor: Any = None, **options: Any) -> Figure:
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
