"""One small file per method: mathematics only. Every module in this folder is imported, and so registered.

``tokenreduce.methods()`` lists them, ``tokenreduce.methods(model)`` those that fit a model: the folder can be called.
"""

import dataclasses
import sys
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from tokenreduce.tables import Table

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


class _Folder(ModuleType):
    def __call__(self, model: Any = None) -> Table:
        """One row per method, baselines last: name, title, stages, what it looks at, parameters with defaults, paper.

        With a ``model``: whether each fits it and where it would act, those that fit first (``tokenreduce.fitting``).
        """
        if model is not None:
            return Table(import_module("tokenreduce.fitting").fitting(model))
        return Table(
            {
                "name": name,
                "title": cls.title,
                "stages": " + ".join(cls.stages) or "the picture",
                "media": ", ".join(cls.media),
                "looks_at": cls.looks_at,
                "parameters": ", ".join(f"{f.name}={f.default!r}" for f in dataclasses.fields(cls)),
                "paper": cls.paper or "baseline",
            }
            for name, cls in import_module("tokenreduce.registry").catalogue().items()
        )


sys.modules[__name__].__class__ = _Folder
