"""Pictures encoded ahead of their prompt, found in it again by the values of their features.

A program may call ``get_image_features`` by itself and hand over embeddings, of this prompt or of a later one, that hold what
came back. A picture whose features nobody uses is forgotten, and never taken for another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenreduce.adapters.hooks.call_scope import CallScopes, Scope
from tokenreduce.adapters.hooks.method_calls import Shadow
from tokenreduce.adapters.hooks.tower_passes import Pick
from tokenreduce.kernels.fingerprint import fingerprint

LATEST = 64  # calls that are known; a prompt is made of features encoded shortly before
ROWS = 1024  # hashed at a time


class EncodingMethod(Shadow):
    """A method of one model that encodes pictures: called by itself, it is a call with a scope of its own.

    ``done`` is then told the scope and what the method returned; not when the method fails.
    """

    def __init__(self, owner: Any, name: str, scopes: CallScopes, done: Callable[[Scope, Any], None]) -> None:
        super().__init__(owner, name)
        self.scopes = scopes
        self.done = done

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.active or self.scopes.scope is not None:
            return self.original(*args, **kwargs)
        scope = Scope()
        with self.scopes.open(scope):
            output = self.original(*args, **kwargs)
        self.done(scope, output)
        return output


class EncodedAhead(NamedTuple):
    """What one call encoded, in the order of the features that it returned, and a hash (R,) of each row of these."""

    picks: list[Pick]
    hashes: Tensor

    def pictures(self) -> Iterator[tuple[list[int], Pick]]:
        """The hashes of each picture's rows."""
        hashes, start = self.hashes.tolist(), 0
        for pick in self.picks:
            yield hashes[start : start + pick.picture.columns], pick
            start += pick.picture.columns


class FoundAhead(NamedTuple):
    """Pictures found in a prompt, in its order: their columns (B, L) bool on the CPU, those of videos among them."""

    visual: Tensor
    video: Tensor
    picks: list[Pick]


class FeaturesAhead:
    """The latest calls that encoded pictures ahead of a prompt; of all threads, as one may encode and another generate."""

    def __init__(self) -> None:
        self.calls: deque[EncodedAhead] = deque(maxlen=LATEST)

    def note(self, picks: list[Pick], rows: Tensor) -> None:
        """``rows`` (R, D), the features of the pictures ``picks``, in the type in which they join a prompt."""
        if sum(pick.picture.columns for pick in picks) == len(rows):
            self.calls.append(EncodedAhead(picks, row_hashes(rows)))

    def find(self, embeds: Tensor, visual: Tensor | None, repeat: int = 1) -> FoundAhead | None:
        """The pictures in ``embeds`` (B, L, D), of several with the same features the one encoded last; None for none.

        ``visual`` (B, L) bool on the CPU are the columns of the prompt's pictures; None: not known. Every ``repeat`` rows
        share a sample, whose pictures are told once.

        Errors: ``ValueError`` where features are there but not all of a picture, or where two pictures explain them.
        """
        if not self.calls:
            return None
        known: dict[int, list[tuple[list[int], Pick]]] = {}
        for call in reversed(self.calls.copy()):
            for own, pick in call.pictures():
                known.setdefault(own[0], []).append((own, pick))
        embeds, visual = embeds[::repeat], None if visual is None else visual[::repeat]
        hashes = row_hashes(embeds.flatten(0, 1)).view(embeds.shape[:2]).tolist()
        every = {row for found in known.values() for own, _ in found for row in own}
        there = torch.tensor([[row in every for row in rows] for rows in hashes])
        if not bool((there if visual is None else there & visual).any()):
            return None
        there = there if visual is None else visual
        video, picks = torch.zeros_like(there), []
        for sample, rows in enumerate(hashes):
            columns = there[sample].nonzero().flatten()
            held, start = [rows[column] for column in columns.tolist()], 0
            while start < len(held):
                fits = [(own, p) for own, p in known.get(held[start], ()) if held[start : start + len(own)] == own]
                if not fits:
                    raise ValueError(
                        f"sample {sample} holds features of pictures that the wrapped model encoded ahead, but from column "
                        f"{int(columns[start])} on not those of a whole picture. Hand over every row that get_image_features "
                        f"or get_video_features returned for a picture, unchanged and in order (its latest {LATEST} calls "
                        "are known), or pass pixel_values to the wrapped model itself"
                    )
                own, pick = fits[0]
                if any(other.picture != pick.picture for _, other in fits):
                    raise ValueError(
                        f"the features from column {int(columns[start])} of sample {sample} on are those of pictures of "
                        f"different layouts, encoded ahead: {', '.join(str(p.picture.layout) for _, p in fits)}. Pass "
                        "pixel_values to the wrapped model itself"
                    )
                if pick.picture.medium == "video":
                    video[sample, columns[start : start + len(own)]] = True
                picks.append(pick)
                start += len(own)
        return FoundAhead(there.repeat_interleave(repeat, 0), video.repeat_interleave(repeat, 0), picks)


def row_hashes(rows: Tensor) -> Tensor:
    """(R,) long of ``rows`` (R, D); equal values give equal hashes, in any other prompt."""
    return torch.cat([fingerprint(part) for part in rows.split(ROWS)])
