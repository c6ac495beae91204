"""Processors of transformers: where the one for pixels sits, how its settings are called, what it computes with them.

| seam | seen |
| --- | --- |
| a processor holds `image_processor` and, where it takes videos, `video_processor` | 5.17 to 5.24 |
| `do_resize`, `size`, `do_center_crop`, `crop_size`, `do_pad`: dictionaries, or objects with the same entries | 5.17 to 5.24 |
| LLaVA-NeXT, LLaVA-OneVision: `image_grid_pinpoints`; `select_best_resolution` and `get_patch_output_size` | 5.17 to 5.24 |
| InternVL: `crop_to_patches`; Aya Vision: a processor with `tile_token`, `min_patches`, `max_patches` | 5.17 to 5.24 |
| Idefics3, SmolVLM: `do_image_splitting`, `max_image_size`, a longest edge of 4096 at most | 5.17 to 5.24 |
| `do_resize` beside `images_kwargs` and `videos_kwargs`: for both, and for one of them | 5.17 to 5.24 |
| `image_token_id`, `image_token_ids`: what is written for a picture; in some families with the markers around it | 5.17 to 5.24 |
| Gemma 3: `do_pan_and_scan`, `pan_and_scan_min_crop_size`, `_max_num_crops`, `_min_ratio_to_activate` | 5.17 to 5.24 |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Settings = Callable[[str], Any]

LONGEST_EDGE = 4096  # pixels, of what Idefics3 and SmolVLM cut into tiles


def pixel_processor(processor: Any, video: bool) -> Any:
    """The image processor inside ``processor``, its video processor where there is one and ``video`` asks for it, or itself."""
    filmed = video and getattr(processor, "video_processor", None)
    return filmed or getattr(processor, "image_processor", processor)


def reader(source: Any, processor: Any) -> Settings:
    """Reads settings of ``source``, a pixel processor inside ``processor`` or a dictionary; None for what is not set."""

    def setting(name: str) -> Any:
        if name == "tile_token":  # of a processor that writes a marker before every tile
            return getattr(processor, name, None)
        return source.get(name) if isinstance(source, dict) else getattr(source, name, None)

    return setting


def entry(size: Any, name: str) -> Any:
    """One entry of a size, which is a dictionary or an object, or None."""
    return size.get(name) if hasattr(size, "get") else getattr(size, name, None)


def best_canvas(size: tuple[int, int], canvases: Sequence[Sequence[int]]) -> tuple[int, int]:
    """(height, width) of the canvas, one of ``canvases``, that an image of ``size`` (height, width) is fitted into."""
    from transformers.image_processing_utils import select_best_resolution

    return select_best_resolution(size, list(canvases))


def fitted_size(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an image of ``size`` (height, width) on its ``canvas``, before the borders."""
    from transformers.image_processing_utils import get_patch_output_size
    from transformers.image_utils import ChannelDimension

    return get_patch_output_size(np.broadcast_to(0, (1, *size)), canvas, ChannelDimension.FIRST)


def takes_videos(processor: Any) -> bool:
    """Whether ``processor`` takes videos as such; to others their frames are images."""
    return getattr(processor, "video_processor", None) is not None


def placeholders(processor: Any, ids: Sequence[int]) -> int:
    """How many of the tokens ``ids``, a prompt with pictures, are places of visual tokens.

    Of the ids a processor names, that is the one written most often: markers stand around a picture or a tile once.
    """
    named = {getattr(processor, "image_token_id", None), *(getattr(processor, "image_token_ids", None) or ())}
    counts = Counter(token for token in ids if token in named)
    return max(counts.values(), default=0)


def sized_before(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of ``arguments`` of a processor, that which says that pictures have their size already; nothing where they do not."""
    return {} if arguments.get("do_resize", True) else {"do_resize": False}


def scaled_call(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``arguments`` of a processor for pictures of a new size: sized by the processor where the caller had done it before."""
    if not sized_before(arguments):
        return dict(arguments)
    given = {name: value for name, value in arguments.items() if name != "do_resize"}
    own = {"images_kwargs": True, "videos_kwargs": False}
    return given | {name: {**given.get(name, {}), "do_resize": resize} for name, resize in own.items()}
