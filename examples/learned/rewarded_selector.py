"""Tokens chosen by what their choice was rewarded with, in the manner of IA-RED2 (Pan et al., NeurIPS 2021, arXiv 2106.12620).

IA-RED2 puts interpreters in front of groups of blocks of a ViT: each drops patches at random, by its scores, and is rewarded for
few patches and a right class (REINFORCE, the reward of its best guess as baseline). Here one interpreter chooses K projected
tokens of a frozen vision-language model, so that only being right is rewarded: with the probability of what the model says with
all tokens. No gradient passes through the model. For the demo model: python examples/learned/rewarded_selector.py OUT.safetensors
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import torch
from torch import nn

import tokenreduce as tr
from tokenreduce.cli.train import Asked, batches
from tokenreduce.eval import demo


@dataclass(frozen=True, kw_only=True)
class RewardedSelector(tr.LearnedMethod):
    name = "rewarded_selector"
    title = "tokens whose choice was rewarded"
    paper = "arXiv 2106.12620"
    stages = ("projector",)

    def module(self, facts):
        width = facts.decoder_width
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64), nn.GELU(), nn.Linear(64, 1))

    def scores(self, tokens):
        x = tokens.features.float() if tokens.learned.training else tokens.features  # as the module is
        return tokens.learned.part("", x)(x)[..., 0].float()

    def reduce(self, tokens):
        return tr.Reduction.top(self.scores(tokens), self.budget.count(tokens.num_tokens), positions=self.positions)

    def lesson(self, step):
        """(B,): minus the log-likelihood of a choice drawn at random, times by how much it beats the best guess."""
        if step.labels is not None or not step.inputs["attention_mask"][:, -1].all():
            raise ValueError("labels, or padding on the right; allowed: prompts that end where an answer begins")
        drawn = Drawn(keep=self.keep, weights=self.weights)  # the same weights: it draws by the module that learns
        with torch.no_grad():
            said = step.logits(tr_keep=None)[:, -1].argmax(-1, keepdim=True)
            rewards = [x[:, -1].softmax(-1).gather(1, said) for x in (step.logits(tr_method=drawn), step.logits())]
        score = step.learned.part("", drawn.told["x"])(drawn.told["x"])[..., 0]
        better, k = (rewards[0] - rewards[1])[:, 0], self.budget.count(score.shape[1])
        return -better * likelihood(score, drawn.told["order"], k)


def likelihood(score, order, k):
    """(B,): the logarithm of how likely draws by ``score`` (B, N), one after the other, begin with ``k`` of ``order`` (B, N)."""
    score = score.gather(1, order)
    return (score - score.flip(1).logcumsumexp(1).flip(1))[:, :k].sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class Drawn(RewardedSelector, register=False):
    """While it trains: K tokens at random by their scores, without any twice; ``told`` says in which order."""

    told: dict = field(default_factory=dict)

    def scores(self, tokens):
        uniform = tokens.learned.drawn(torch.rand, tokens.features.shape[:2]).clamp(1e-6, 1 - 1e-6)
        drawn = super().scores(tokens) - (-uniform.log()).log().to(tokens.features.device)  # Gumbel's noise
        self.told.update(x=tokens.features.float(), order=drawn.argsort(dim=1, descending=True))
        return drawn


def trained(steps: int, keep: int = 9) -> tr.Trained:
    model, processor = demo.load()
    asked = [Asked(q.image, demo.prompt(q.question), "") for q in demo.questions("train", 2 * steps, per_image=4)]
    data, settings = batches(model, processor, asked, 8, seed=0), tr.TrainingSettings(steps=steps, learning_rate=1e-2)
    return tr.train(model, RewardedSelector(keep=keep), data, settings=settings, progress=True)


if __name__ == "__main__":
    trained(steps=300).weights.save(sys.argv[1])
