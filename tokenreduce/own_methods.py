"""Methods from elsewhere: of packages that name them, of modules, of single files. Each is registered by being imported."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
import warnings
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from tokenreduce.method import Method

#: the group of entry points by which an installed package brings methods: ``mine = my_package.mine:Mine``, or a module
GROUP = "tokenreduce.methods"

_FILES: dict[Path, tuple[int, ModuleType]] = {}


@cache
def load_installed() -> None:
    """Import what installed packages name in the group ``tokenreduce.methods``, once per process.

    Warns of one that cannot be imported, and goes on without it.
    """
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            point.load()
        except Exception as error:
            owner = "" if point.dist is None else f" of {point.dist.name}"
            warnings.warn(
                f"the method {point.name}{owner} is left out: {point.value} cannot be loaded "
                f"({type(error).__name__}: {error}); update or uninstall that package",
                stacklevel=2,
            )


def load(places: Iterable[str]) -> None:
    """Import modules (``package.module``) and files (``./mine.py``), which registers the methods they define.

    Errors: ``ValueError`` for what is not there or cannot be imported.
    """
    for place in places:
        _module(place, f"import={place!r}")


def found(place: str) -> type[Method]:
    """The class at ``FILE.py:Class`` or ``package.module:Class``. Errors: ``ValueError`` where there is none."""
    source, _, name = place.rpartition(":")
    if not source:
        raise ValueError(f"method={place!r} names no class; give FILE.py:Class or package.module:Class")
    module = _module(source, f"method={place!r}")
    own = {
        n: cls
        for n, cls in vars(module).items()
        if isinstance(cls, type) and issubclass(cls, Method) and cls is not Method
    }
    if name not in own:
        raise ValueError(f"method={place!r}: {source} holds no method {name}; it holds: {', '.join(own) or 'none'}")
    return own[name]


def place_of(cls: type[Method]) -> str | None:
    """Where another process finds ``cls``, as ``found`` takes it; None for this package's own, and where none can."""
    module, name = cls.__module__, cls.__qualname__
    if module.startswith(f"{__package__}.") or module == "__main__" or "." in name:
        return None
    return f"{module}:{name}"


def _module(source: str, argument: str) -> ModuleType:
    if source.endswith(".py") or "/" in source:
        return _file(Path(source).expanduser(), argument)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:  # a console script does not look where it is called
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(source)
    except Exception as error:
        raise ValueError(
            f"{argument}: the module {source} cannot be imported ({_told(error)}); give one that Python finds from here, or "
            "a file such as ./mine.py"
        ) from error


def _file(path: Path, argument: str) -> ModuleType:
    """The module of a file, run again when it has changed. It is named by its path, so that two files never meet."""
    if not path.is_file():
        raise ValueError(
            f"{argument}: there is no file {path}; give FILE.py, or FILE.py:Class where a method is asked for"
        )
    path, changed = path.resolve(), path.stat().st_mtime_ns
    if _FILES.get(path, (None,))[0] != changed:
        spec = importlib.util.spec_from_file_location(str(path), path)
        if spec is None or spec.loader is None:
            raise ValueError(f"{argument}: {path.name} is no Python file; allowed: a name ending in .py")
        before = sys.modules.get(spec.name)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for types
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            sys.modules.pop(spec.name)
            if before is not None:
                sys.modules[spec.name] = before
            raise ValueError(f"{argument}: {path.name} cannot be run ({_told(error, path)})") from error
        _FILES[path] = changed, module
    return _FILES[path][1]


def _told(error: Exception, path: Path | None = None) -> str:
    """What went wrong, and in which line of ``path`` where it is known."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{type(error).__name__}: {error}" + (f", line {lines[-1]}" if lines else "")
