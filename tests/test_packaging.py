"""The package as people install it: wheel and editable, from anywhere, beside packages of the same names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "adapters.hooks.decoder_inputs",
    "kernels.attention_row",
    "kernels.triton.common",
    "eval.demo",
    "methods.hiprune",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A clean copy of what is packaged."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("tokenreduce", "adapters", "kernels", "eval"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def build(source: Path, kind: str, target: Path) -> Path:
    """Build with the backend itself and unpack; returns the folder to put on the path."""
    code = f"import setuptools.build_meta as b; print(b.build_{kind}({str(target)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = target.glob("*.whl")
    site = target / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def python(code: str, cwd: Path, *paths: Path) -> str:
    """Output of ``code`` with ``paths`` in front of the installed packages.

    Path files (.pth) of ``paths`` are honoured, those of the environment are not: it may hold an editable install.
    """
    installed = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    prelude = "import site, sys\n" + "".join(f"site.addsitedir({str(p)!r})\n" for p in paths)
    prelude += f"sys.path += {installed!r}\n"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    done = subprocess.run(
        [sys.executable, "-S", "-c", prelude + code], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_every_room_inside_the_package_and_the_demo_weights(source, tmp_path):
    site = build(source, "wheel", tmp_path)
    assert sorted(p.name for p in site.iterdir() if not p.name.endswith(".dist-info")) == ["tokenreduce"]
    package = site / "tokenreduce"
    packed = {p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file()}
    for room in ("adapters", "kernels", "eval"):
        own = {f"{room}/{p.relative_to(ROOT / room).as_posix()}" for p in (ROOT / room).rglob("*.py")}
        assert own <= packed
    data = (
        "demo/weights/model.safetensors",
        "demo/weights/config.json",
        "tasks/_demo.yaml",
        "tasks/tr_demo_video.yaml",
    )
    assert {"py.typed", *(f"eval/{name}" for name in data)} <= packed
    imports = "\n".join(f"import tokenreduce.{room}; print(tokenreduce.{room}.__file__)" for room in ROOMS)
    for line in python(imports, tmp_path, site).splitlines():
        assert line.startswith(str(site))


def test_editable_install_finds_the_rooms_beside_the_package(source, tmp_path):
    site = build(source, "editable", tmp_path)
    imports = "\n".join(f"import tokenreduce.{room}; print(tokenreduce.{room}.__file__)" for room in ROOMS)
    code = "import sys; sys.path[:] = [p for p in sys.path if p != ''];" + imports
    for line in python(code, tmp_path, site).splitlines():
        assert line.startswith(str(source))


def test_other_packages_named_kernels_adapters_and_eval_are_not_shadowed_at_the_repository_root(tmp_path):
    for name in ("kernels", "adapters", "eval"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("mark = 'theirs'\n")
    code = "import kernels, adapters, eval; print(kernels.mark, adapters.mark, eval.mark)\n"
    code += "import tokenreduce.kernels.attention_row as ours; print(ours.__name__)"
    out = python(code, ROOT, tmp_path)
    assert out.splitlines() == ["theirs theirs theirs", "tokenreduce.kernels.attention_row"]


def test_transformers_is_not_misled_by_our_folder_named_kernels():
    code = "from transformers.utils.import_utils import _is_package_available as a; print(a('kernels', return_version=True))"
    at_root = python(code, ROOT)
    assert at_root == python(code, Path("/"))


def test_import_is_light():
    heavy = ("torch", "transformers", "timm", "open_clip", "lmms_eval", "triton", "matplotlib")
    code = f"import sys, tokenreduce as tr; dir(tr); print([m for m in {heavy!r} if m in sys.modules])"
    assert python(f"import sys, tokenreduce; print([m for m in {heavy!r} if m in sys.modules])", ROOT).strip() == "[]"
    used = python(code.replace("dir(tr)", "tr.methods()"), ROOT)
    for name in ("transformers", "timm", "open_clip", "lmms_eval", "matplotlib"):
        assert name not in used


def test_public_names():
    import tokenreduce as tr

    for name in ("wrap", "wrapped", "unwrap", "budget", "trace", "report", "methods", "families", "HiPrune", "Method"):
        assert name in dir(tr)
        assert callable(getattr(tr, name))
    last = ["pool", "pool_time", "random", "sample_frames", "uniform", "downscale"]
    assert [row["name"] for row in tr.methods()][-6:] == last
    assert "llava" in str(tr.families())
    assert "<table>" in tr.methods()._repr_html_()
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = tr.Nothing


@pytest.mark.parametrize("name", ["lock.txt", "floor.txt"])
def test_every_declared_requirement_has_a_committed_version(name):
    from packaging.requirements import Requirement

    lines = [Requirement(line) for line in (ROOT / "requirements" / name).read_text().splitlines()]
    for python in ("3.11.7", "3.12.4"):
        place = {"python_full_version": python, "python_version": python[:4], "sys_platform": "linux"}
        place |= {"platform_system": "Linux", "platform_machine": "x86_64"}
        held = {line.name: line for line in lines if line.marker is None or line.marker.evaluate(place)}
        for line in declared():
            if line.name != "tokenreduce" and (line.marker is None or line.marker.evaluate(place)):
                (version,) = held[line.name.replace("_", "-").lower()].specifier
                assert version.operator == "=="
                assert line.specifier.contains(version.version), (
                    f"{name}: {line} is solved as {version}; run make newest"
                )


def declared() -> list:
    """Requirements of the package and of every extra."""
    from configparser import ConfigParser

    from packaging.requirements import Requirement

    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    parts = [settings["options"]["install_requires"], *settings["options.extras_require"].values()]
    return [Requirement(line) for part in parts for line in part.splitlines() if line and not line.startswith("#")]
