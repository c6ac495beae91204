"""CDPruner: a subset of tokens that is relevant to the question and diverse at once, by a determinantal point process."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from tokenreduce.joint_space import JointSpace, Question
from tokenreduce.kernels.greedy_selection import dpp_selection
from tokenreduce.method import Method, Step
from tokenreduce.model_facts import ModelFacts
from tokenreduce.reduction import Reduction
from tokenreduce.schedules import largest_remainder
from tokenreduce.signals import Hidden, Text, TowerRows
from tokenreduce.text_relevance import cosine_to_text
from tokenreduce.tokens import VisualTokens
from tokenreduce.validation import choice


@dataclass(frozen=True, kw_only=True)
class CDPruner(Method):
    """Keep the tokens that greedily maximise det L, with L_ij = r_i cos(f_i, f_j) r_j for features f and relevance r.

    Attributes:
        keep: fraction of N, or count per image; shared by tiles and frames in proportion to their tokens.
        text_tower: the space in which tokens and the question are compared, as ``tr.text_tower`` makes it of the CLIP or SigLIP
            that the vision tower was taken from; the question is told in words, by ``tr.question`` or ``question=``. None:
            embeddings of the language model.
        text: without a text tower, which text of the prompt tokens are compared with: ``all``, ``after`` or ``before``
            the picture.
        sign: 1, or -1 for relevance as the negated cosine; None: -1 with a CLIP as text tower, else 1.
        theta: weight of relevance against diversity, in [0, 1): r becomes exp(theta / (2 (1 - theta)) r); None: r itself.

    Source: Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
        NeurIPS 2025, arXiv 2506.10967, section 3.
    Departures from the release: relevance is rescaled within an image, never across the images of a batch; picks stop where
        what is left adds no volume, and the most relevant of the rest follow; without text every token is as relevant.
    """

    name = "cdpruner"
    title = "relevant to the question and diverse"
    paper = "arXiv 2506.10967"
    stages = ("projector",)
    looks_at = "text of the prompt, features"
    sees = "image"

    text_tower: JointSpace | None = None
    text: Literal["all", "after", "before"] = "all"
    sign: Literal[1, -1] | None = None
    theta: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("text", self.text, ("all", "after", "before"))
        if self.text_tower is not None and not isinstance(self.text_tower, JointSpace):
            raise TypeError(
                f"text_tower is a {type(self.text_tower).__name__}; allowed: tr.text_tower(model, tokenizer) of a CLIPModel or "
                "SiglipModel, or None"
            )
        choice("sign", self.sign, (None, 1, -1))
        if self.theta is not None and not (isinstance(self.theta, (int, float)) and 0 <= self.theta < 1):
            raise ValueError(
                f"theta={self.theta!r} is outside [0, 1), the range of a weight; None leaves relevance as it is"
            )

    def plan(self, facts: ModelFacts) -> tuple[Step, ...]:
        space = self.text_tower
        if space is None:
            return (Step("projector", needs=(Hidden(), Text(self.text, special=False))),)
        if facts.tower_width not in (0, space.width):
            raise ValueError(
                f"text_tower={space} reads rows of {space.width} channels, the vision tower of this {facts.family} model makes "
                f"rows of {facts.tower_width}; allowed: the CLIP or SigLIP that this tower was taken from, or None"
            )
        return (Step("projector", needs=(TowerRows(facts.feature_block), Question(space))),)

    def substitutes(self, facts: ModelFacts) -> tuple[str, ...]:
        if self.text_tower is not None:
            joined = facts.patches_per_token > 1
            return ("the mean of the patches that the projector joins in a token as what the text tower sees",) * joined
        return ("relevance by embeddings of the language model in place of a text tower's: none was given",)

    def reduce(self, tokens: VisualTokens) -> Reduction:
        rows, text = tokens.signals.values()
        space = self.text_tower
        cosine = cosine_to_text(rows, text) if space is None else cosine_to_text(space.image(rows), text, to="each")
        sign = self.sign or (1 if space is None else space.sign)
        r = relevance(cosine * sign, text.valid.any(dim=1), theta=self.theta)
        n = tokens.num_tokens
        keep = picks(tokens.features, r, self.budget.count(n), view_of(tokens))
        return Reduction.select(keep, n, score=r, positions=self.positions)


def relevance(cosine: Tensor, has_text: Tensor, theta: float | None = None, eps: float = 1e-6) -> Tensor:
    """(B, N) float32 r > 0 from the ``cosine`` (B, N) of an image's tokens with the text, signed: rescaled to (0, 1].

    1 where an image has no text, ``has_text`` (B,) bool, or all its tokens are as close to it.
    """
    low, high = cosine.amin(dim=1, keepdim=True), cosine.amax(dim=1, keepdim=True)
    varies = (high > low) & has_text[:, None]
    r = torch.where(varies, (cosine - low + eps) / torch.where(varies, high - low, 1), 1)
    return r if theta is None else torch.exp(theta / (2 * (1 - theta)) * r)


def picks(x: Tensor, r: Tensor, k: int, view: Tensor | None = None) -> Tensor:
    """(B, k) long: the determinantal subset of each view by itself, as the release selects in every tile.

    Args:
        x: (B, N, D) features; ``r`` (B, N) their relevance.
        k: tokens to take, shared among the views in proportion to their tokens.
        view: (B, N) long on the host, the view that each token belongs to; None: there is one.
    """
    if view is None:
        return dpp_selection(x, r, k)
    taken = torch.empty(len(x), k, dtype=torch.long, device=x.device)
    for row in view.unique(dim=0):  # images whose tokens are spread over the views alike
        images = (view == row).all(dim=1).nonzero()[:, 0].to(x.device, non_blocking=True)
        sizes = row.bincount().tolist()
        shares = largest_remainder([Fraction(k * size, x.shape[1]) for size in sizes], k)
        at = row.argsort(stable=True).to(x.device, non_blocking=True).split(sizes)
        found = []
        for kind in dict.fromkeys(zip(sizes, shares)):
            if kind[1]:  # views of one size are asked about together
                index = torch.stack([at[v] for v, own in enumerate(zip(sizes, shares)) if own == kind])
                own, its = (t[images][:, index].flatten(0, 1) for t in (x, r))
                rows = index.repeat(len(images), 1).gather(1, dpp_selection(own, its, kind[1]))
                found.append(rows.view(len(images), -1))
        taken[images] = torch.cat(found, dim=1)
    return taken


def view_of(tokens: VisualTokens) -> Tensor | None:
    """(B, N) long on the host: the tile or frame that each token belongs to; None where there is a single one."""
    views = tokens.layout.split("frame")
    if len(views) == 1:
        return None
    owner = torch.empty(tokens.layout.num_tokens, dtype=torch.long)
    for number, (_, own) in enumerate(views):
        owner[list(own)] = number
    if tokens.num_tokens == tokens.layout.num_tokens:
        return owner.expand(len(tokens.source), -1)
    return owner[tokens.source.clamp_min(0).cpu()]
