"""Doctests of docstrings as blocks of code on the pages of the API."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Doctests(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            doctest = r"^>>> .*(?:\n(?!\s*$).*)*"
            obj.docstring.value = re.sub(doctest, r"```pycon\n\g<0>\n```", obj.docstring.value, flags=re.M)
