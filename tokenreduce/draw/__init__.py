"""Pictures of what is left: kept tokens over the original pixels, merged groups in their mean colour, scores, videos.

>>> import tokenreduce as tr
>>> # tr.draw(tr.trace(model), photo, processor).save("kept.png")

``tokenreduce.draw(...)`` is ``tokenreduce.draw.draw(...)``: the folder can be called.
"""

import sys
from types import ModuleType
from typing import Any

from tokenreduce.answers import answer
from tokenreduce.draw.comparison import compare
from tokenreduce.draw.explorer import explore
from tokenreduce.draw.geometry.boxes import cell_boxes, seen_box, tiles_of, view_boxes
from tokenreduce.draw.image_grid import image_grid
from tokenreduce.draw.legend import ROLE_COLORS, legend, role_color, swatches
from tokenreduce.draw.overlay import draw, figure
from tokenreduce.draw.page import write_page
from tokenreduce.draw.stages import describe, step_names, summarize
from tokenreduce.draw.style import html_key, key_entries, stylesheet
from tokenreduce.draw.video import Animation, animate, strip

__all__ = [
    "ROLE_COLORS", "Animation", "animate", "answer", "cell_boxes", "compare", "describe", "draw", "explore", "figure",
    "html_key", "image_grid", "key_entries", "legend", "role_color", "seen_box", "sheet", "step_names", "strip", "stylesheet",
    "summarize", "swatches", "tiles_of", "view_boxes", "write_page",
]  # fmt: skip

sheet = image_grid


class _Folder(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        return draw(*args, **options)


sys.modules[__name__].__class__ = _Folder
