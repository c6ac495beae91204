"""The lesson of a method that reduces: that the model says what it says with all tokens, or what is the answer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenreduce.training_step import TrainingStep


def distilled(step: TrainingStep, keep: object) -> Tensor:
    """Of each answer token, or of each prompt's last token where there are no labels, (n,): the divergence from what the model
    says with all tokens; or, where ``step.settings.loss`` says ``answers``, cross-entropy.

    Errors: ``ValueError`` where nothing is left out of the pictures of the step by the budget ``keep``.
    """
    before = None
    if step.settings.loss == "distillation":
        with torch.no_grad():
            before = step.logits(tr_keep=None)
    after = step.logits()
    if not after.requires_grad:
        raise ValueError(
            f"keep={keep!r} leaves out no token of a picture of step {step.number}, so that there is nothing to learn; allowed: "
            "fewer tokens than its pictures have, such as keep=0.25, and data with pictures"
        )
    if step.labels is not None:
        rows, columns = (step.labels[:, 1:] != -100).nonzero(as_tuple=True)
    else:
        real = step.inputs.get("attention_mask", torch.ones(after.shape[:2], device=after.device))
        columns = (real * torch.arange(real.shape[1], device=real.device)).argmax(dim=1)
        rows = torch.arange(len(columns), device=columns.device)
    own = after[rows, columns].float()
    if before is None:
        assert step.labels is not None, "refused when the step was made"
        return F.cross_entropy(own, step.labels[rows, columns + 1], reduction="none")
    whole = before[rows, columns].float().log_softmax(-1)
    return F.kl_div(own.log_softmax(-1), whole, reduction="none", log_target=True).sum(dim=-1)
