"""Families whose towers merge by units."""

from __future__ import annotations

import tokenreduce as tr

METHODS = {
    "tome": tr.ToMe,
    "tome plain": lambda **k: tr.ToMe(proportional=False, inflection=-1.0, **k),
    "pitome": tr.PiToMe,
    "pitome keys": lambda **k: tr.PiToMe(preset="keys", **k),
    "pitome bsm": lambda **k: tr.PiToMe(preset="keys_bsm", **k),
}


CLOSE = {"atol": 1e-4, "rtol": 1e-4}  # float32 logits of size 8, behind a tower and a decoder that add in other orders


SQUARES = ["internvl", "smolvlm", "gemma3", "aya_vision"]
