# SPDX-License-Identifier: Apache-2.0
"""The site beside mkdocs: README, CONTRIBUTING and CHANGELOG are pages, and links to code lead to the API."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]+)?\)")
SOURCE = re.compile(r"(?P<attribute>src=\")(?P<target>[^\":]+)\"")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files at the repository's root that are pages of the site."""
    for page, name in PAGES.items():
        files.append(File.generated(config, page, content=Path(name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that hold in the repository hold in the site: to other pages, and to the API for a class or function."""
    place = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def from_repository(target: str) -> str:
        return posixpath.normpath(posixpath.join(posixpath.dirname(place), target))

    def link(match: re.Match[str]) -> str:
        text, target = match["text"], match["target"]
        if "://" in target:
            return match[0]
        path = from_repository(target)
        if path.startswith("vanilla_transformer/") and path.endswith(".py"):
            module = path.removesuffix(".py").replace("/", ".")
            name = text.strip("`")
            # A class or function has an entry of its own; a constant or a file is shown by its module.
            has_entry = text != name and not name.isupper()
            return f"[{text}][{module}.{name}]" if has_entry else f"[{text}][{module}]"
        if (uri := _page_of(path)) is None:
            return text  # another file of the repository, which the site does not have
        return f"[{text}]({posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or '.')}{match['anchor'] or ''})"

    def source(match: re.Match[str]) -> str:
        path = from_repository(match["target"]).removeprefix("docs/")
        return f'{match["attribute"]}{posixpath.relpath(path, posixpath.dirname(page.file.src_uri) or ".")}"'

    return SOURCE.sub(source, LINK.sub(link, markdown))


def _page_of(path: str) -> str | None:
    """The page that shows a file of the repository."""
    for page, name in PAGES.items():
        if path == name:
            return page
    return path.removeprefix("docs/") if path.startswith("docs/") else None
