"""How the pages of docs/ become a site: the list of methods, the changelog, and links to files that are no pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("adapters", "eval", "kernels")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)]*)?\)")


def on_startup(command: str, dirty: bool) -> None:
    """The package as it installs, for the pages of the API: its rooms stand beside it in the repository, and name no package."""
    package = ROOT / "build/api/tokenreduce"
    for room in (package, *(package / name for name in ROOMS)):
        source = ROOT / room.relative_to(package.parent if room == package else package)
        room.mkdir(parents=True, exist_ok=True)
        if not (source / "__init__.py").exists():
            (room / "__init__.py").touch()
        for path in source.iterdir():
            if not (room / path.name).is_symlink():
                (room / path.name).symlink_to(path)


def on_config(config: Any) -> Any:
    pages = sorted((ROOT / "docs/methods").glob("*.md"), key=lambda page: (page.stem == "baselines", page.stem))
    methods = [{page.stem: f"methods/{page.name}"} for page in pages]
    config.nav = [{"Methods": methods} if "Methods" in entry else entry for entry in config.nav]
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "changelog.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Files of the repository outside docs/ are named, or linked to where ``repo_url`` says that they are."""

    def named(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return found[0]
        path = (ROOT / "docs" / page.file.src_uri).parent.joinpath(target).resolve()
        if path.is_relative_to(ROOT / "docs") and path.suffix in (".md", ".png", ".gif", ".html"):
            return found[0]
        if not path.exists():
            raise FileNotFoundError(f"{page.file.src_uri} points at {target}, which is not there")
        where = path.relative_to(ROOT).as_posix()
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{where}{anchor})"
        return f"`{where}`" if where.endswith(text) else f"{text} (`{where}`)"

    return LINK.sub(named, markdown)
