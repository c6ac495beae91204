"""One small file per method: mathematics only. Every module in this folder is imported, and so registered.

``tokenreduce.methods()`` lists them: the folder can be called.
"""

import sys
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


class _Folder(ModuleType):
    def __call__(self) -> object:
        from tokenreduce.tables import methods

        return methods()


sys.modules[__name__].__class__ = _Folder
