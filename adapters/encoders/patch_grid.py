"""Where the patches of a pass are: read off what the patch embedding makes, never off a configured image size."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from tokenreduce.layout import Layout, PixelUnit
from tokenreduce.per_thread import PerThread, nothing


class Arrived(NamedTuple):
    """The patches of one image as they reach the first block.

    Attributes:
        layout: where they are.
        filling: rows among them that only fill up a batch of images of several sizes, ascending; None: the model is not
            told of any, and all are patches.
    """

    layout: Layout
    filling: tuple[int, ...] | None = None


class PatchGrid:
    """Notes the patch grid of every pass of one tower.

    ``embedding`` is the convolution that makes the patches, or any module that returns (..., height, width); None, or a
    tower entered behind it: ``usual``, the grid of the configured image size.
    """

    seen = PerThread[list[Arrived]](list)
    pixels = PerThread[Tensor | None](nothing)  # of the latest pass, where they are ``wanted``
    wanted = False

    def __init__(self, embedding: nn.Module | None, usual: tuple[int, int] | None = None) -> None:
        self.embedding = embedding
        self.usual = usual

    def watch(self) -> list[Any]:
        """Handles of the hooks that note the grid."""
        return [] if self.embedding is None else [self.embedding.register_forward_hook(self.note)]

    def note(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.seen = [Arrived(Layout(*output.shape[-2:]))] * len(output)
        if self.wanted:
            self.pixels = args[0]

    @property
    def unit(self) -> PixelUnit | None:
        """What the pixels of a patch are made of, where patches do not overlap; None: not known."""
        patch = self.embedding
        if not isinstance(patch, nn.Conv2d) or patch.kernel_size != patch.stride or any(patch.padding):
            return None
        return PixelUnit(1, patch.in_channels, 1, *patch.kernel_size)

    def arrived(self, batch: int, n: int) -> list[Arrived]:
        """What is known of the ``batch`` images of a pass that arrives with ``n`` rows of patches each.

        Errors: ``ValueError`` when patches of a grid are missing.
        """
        seen, self.seen = self.seen, []
        if not seen and self.usual is not None and self.usual[0] * self.usual[1] == n:
            seen = [Arrived(Layout(*self.usual))] * batch
        if not seen:
            return [Arrived(Layout(1, n))] * batch
        for layout, filling in seen:
            patches = n - len(filling or ())
            if layout.num_tokens != patches:
                raise ValueError(
                    f"{patches} patches arrive at the first block, of a grid of {layout.height} x {layout.width}: the model "
                    "drops some before (patch dropout while training?), so none can be placed. Call model.eval() or set that "
                    "dropout to 0"
                )
        return seen


def cells_of(pixels: Tensor, side: tuple[int, int]) -> Tensor:
    """``pixels`` (M, C, H, W) cut into cells of ``side``, down and across, in raster order: (M, cells, C * cell)."""
    high, wide = pixels.shape[2] // side[0], pixels.shape[3] // side[1]
    whole = pixels[:, :, : high * side[0], : wide * side[1]]
    parts = whole.unflatten(3, (wide, side[1])).unflatten(2, (high, side[0]))
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(len(pixels), high * wide, -1)


def placed(places: Tensor, valid: Tensor | None) -> list[Arrived]:
    """Of each image, where its patches are: ``places`` (B, N, 2) long, down and across; ``valid`` (B, N), which are real."""
    places = places if valid is None else places.masked_fill(~valid.bool()[..., None], 0)
    height, width = (places.amax(dim=1) + 1).T
    cells = (places[..., 0] * width[:, None] + places[..., 1]).tolist()
    real = None if valid is None else valid.tolist()
    found = []
    for i, (own, h, w) in enumerate(zip(cells, height.tolist(), width.tolist())):
        filling = None if real is None else tuple(n for n, there in enumerate(real[i]) if not there)
        if filling:
            own = [cell for cell, there in zip(own, real[i]) if there]  # type: ignore[index]
        found.append(Arrived(Layout(h, w, cells=None if own == list(range(h * w)) else tuple(own)), filling))
    return found
