"""Where labels of a training step say that an answer begins."""

from __future__ import annotations

import warnings

from torch import Tensor


def before_answers(labels: Tensor, visual: Tensor) -> list[int]:
    """Per sample, the first column to be learned behind the last visual token and text that is not: a question.

    The row's length where nothing between the two is left out of learning, so that labels tell of no question. Warns when
    an answer stands between two images, whose questions then differ.
    """
    length = visual.shape[1]
    learned = labels.to("cpu")[:, -length:] != -100
    ends = []
    for sample, (learns, sees) in enumerate(zip(learned, visual)):
        columns = sees.nonzero().flatten().tolist() or [-1]
        asked = (~learns & ~sees).nonzero().flatten()
        answers = learns.nonzero().flatten()
        between = asked[(asked > columns[0]) & (asked < columns[-1])]
        if len(between) and bool(((answers > between[0]) & (answers < columns[-1])).any()):
            warnings.warn(
                f"labels of sample {sample} ask for an answer between two images; a method that ranks tokens by the question "
                "ranks all of them by the question behind the last one, which a conversation would not: give each image a "
                "row of its own, or say prompt_length=",
                stacklevel=2,
            )
        behind = answers[answers > columns[-1]]
        told = len(behind) and bool(((asked > columns[-1]) & (asked < behind[0])).any())
        ends.append(int(behind[0]) if told else length)
    return ends
