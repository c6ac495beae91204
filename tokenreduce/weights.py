"""What a method has learned: the weights of a small module, the model they belong to, and the module beside that model."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor, nn

from tokenreduce.files import writing
from tokenreduce.headed_tensors import SUFFIX, differing, packed, unpacked
from tokenreduce.learned_module import Learned
from tokenreduce.model_facts import ModelFacts

KIND = "tokenreduce weights"


@dataclass(frozen=True)
class Base:
    """The model that weights were trained beside, as far as it is known.

    Attributes:
        model: ``model_type`` of its configuration; ``tower``, of its vision tower, or its class.
        tower_width: channels of a row there; ``decoder_width``, of a token in the language model.
        decoder_layers: how many there are; ``tokens``, of an image, where that is fixed.
    """

    model: str
    tower: str
    tower_width: int | None
    decoder_width: int | None
    decoder_layers: int
    tokens: int | None

    @classmethod
    def of(cls, facts: ModelFacts) -> Base:
        widths = facts.tower_width or None, facts.decoder_width or None
        return cls(facts.family, facts.tower_type, *widths, facts.decoder_depth, facts.tokens_per_image)


@dataclass(frozen=True)
class Header:
    """What a file of weights says of them.

    Attributes:
        method: the name of the method; ``version``, of how it reads them.
        base: the model they belong to.
        shape: hyper-parameters that the module is built by.
        training: how they came about: loss, steps, seed, budget, data.
    """

    method: str
    version: int
    base: Base
    shape: Mapping[str, Any]
    training: Mapping[str, Any]

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Header:
        return cls(**{**content, "base": Base(**content["base"])})


@dataclass(frozen=True, init=False, repr=False)
class Weights:
    """Weights of one method for one model; equal where file and content are.

    Attributes:
        path: the file they were read from; empty where they were never saved.
        sha256: of the file's content.
    """

    path: str
    sha256: str

    def __init__(self, path: str, sha256: str, header: Header, tensors: Mapping[str, Tensor]) -> None:
        beside = WeakValueDictionary[Base, Learned]()
        self.__dict__.update(path=path, sha256=sha256, _header=header, _tensors=dict(tensors), _beside=beside)

    @property
    def header(self) -> Header:
        """What the file says of them."""
        found: Header = self.__dict__["_header"]
        return found

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """By name."""
        found: Mapping[str, Tensor] = self.__dict__["_tensors"]
        return found

    def __repr__(self) -> str:
        return f"<weights of {self.header.method}, {self.sha256[:12]}>"

    @classmethod
    def of(cls, given: Weights | str | PathLike[str] | Mapping[str, Any]) -> Weights:
        """From themselves, a file, or what ``dataclasses.asdict`` says of them: a file and the hash of its content.

        Errors: ``TypeError`` for anything else, ``ValueError`` for no file of weights, or one that is no longer the same.
        """
        if isinstance(given, Weights):
            return given
        if isinstance(given, (str, PathLike)):
            return read(given)
        if isinstance(given, Mapping) and set(given) == {"path", "sha256"}:
            if not given["path"]:
                raise ValueError(
                    "weights that were never saved; allowed: Weights.save(path) first, and what it returns"
                )
            found = read(given["path"])
            if found.sha256 != given["sha256"]:
                raise ValueError(
                    f"weights={given['path']!r} changed since: its SHA-256 is {found.sha256[:12]}..., not "
                    f"{given['sha256'][:12]}...; allowed: the same file, or a new run"
                )
            return found
        raise TypeError(f"weights={given!r}; allowed: a .safetensors file that tr.Weights.save wrote, or tr.Weights")

    @classmethod
    def made(cls, header: Header, module: nn.Module) -> Weights:
        """Of ``module`` as it is now; not saved yet."""
        tensors = {name: x.detach().to("cpu", copy=True).contiguous() for name, x in module.state_dict().items()}
        return cls("", hashlib.sha256(_content(header, tensors)).hexdigest(), header, tensors)

    def copy(self) -> Weights:
        """The same weights, beside no model yet."""
        return Weights(self.path, self.sha256, self.header, self.tensors)

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> Weights:
        """Write a .safetensors file, whole or not at all; returns the weights of that file.

        Errors: ``FileExistsError`` where it is there, unless ``overwrite``; ``ValueError`` for another ending, or no folder.
        """
        with writing(Path(path), (SUFFIX,), overwrite) as file:
            file.write(_content(self.header, self.tensors))
        return Weights(str(Path(path).resolve()), self.sha256, self.header, self.tensors)

    def check(self, method: str, version: int, shape: Mapping[str, Any], facts: ModelFacts) -> None:
        """Raise where these are of another method, version or shape, or belong to another model than that of ``facts``."""
        own, made = self.header, "Give weights that were trained for this one"
        if own.method != method:
            raise ValueError(f"method={method!r}: the weights are of method {own.method!r}; allowed: its own. {made}")
        if own.version != version:
            raise ValueError(
                f"method={method!r}: the weights are of version {own.version}, not {version}, which this release reads. {made}"
            )
        differs = differing(own.base, Base.of(facts))
        if differs:
            raise ValueError(
                f"method={method!r}: the weights belong to another model than this {facts.family} model: {'; '.join(differs)}. "
                f"{made}"
            )
        for name, value in shape.items():
            if name in own.shape and own.shape[name] != value:
                raise ValueError(
                    f"method={method!r}: {name}={value!r}, but the weights were trained with {name}={own.shape[name]!r}; leave "
                    f"{name} out, which is then as they say. {made}"
                )

    def beside(self, facts: ModelFacts, build: Callable[[], nn.Module]) -> Learned:
        """The module that ``build`` makes, with these weights; one and the same for a model as long as anybody holds it.

        Errors: ``ValueError`` where names or shapes of its tensors are others than the file's.
        """
        base, beside = Base.of(facts), self.__dict__["_beside"]
        found: Learned | None = beside.get(base)
        if found is None:
            module = build()
            _check_tensors(self.header.method, module.state_dict(), self.tensors)
            module.load_state_dict(self.tensors)
            found = beside[base] = Learned(module)
        return found


def read(path: str | PathLike[str]) -> Weights:
    """The weights in a file that ``Weights.save`` wrote. Errors: ``ValueError`` for no file, or another one."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights={str(path)!r} is no file; allowed: one that tr.Weights.save wrote")
    try:
        header, tensors = unpacked(path, KIND)
        made = Header.read(header)
    except Exception as error:  # safetensors raises its own kind of error
        raise ValueError(
            f"weights={str(path)!r} holds no weights of a method ({error}); allowed: a .safetensors file that "
            "tr.Weights.save wrote"
        ) from error
    return Weights(str(path.resolve()), hashlib.sha256(path.read_bytes()).hexdigest(), made, tensors)


def _content(header: Header, tensors: Mapping[str, Tensor]) -> bytes:
    return packed(KIND, dataclasses.asdict(header), tensors)


def _check_tensors(method: str, expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    shapes, found = ({name: tuple(x.shape) for name, x in those.items()} for those in (expected, given))
    wrong = [
        f"{name} {found.get(name, 'missing')}, not {shapes.get(name, 'expected')}"
        for name in sorted(shapes.keys() | found.keys())
        if shapes.get(name) != found.get(name)
    ]
    if wrong:
        raise ValueError(
            f"method={method!r}: the weights hold other tensors than its module: {'; '.join(wrong[:4])}; allowed: a file that "
            "was trained with these parameters"
        )
