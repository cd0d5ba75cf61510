"""What the site needs beyond plain Markdown, as hooks of MkDocs and an extension of mkdocstrings.

The pages link to files of the repository outside of docs/ (reports, job files, SECURITY.md) by relative paths, which
work in a repository browser. MkDocs knows only docs/. So every such file is added to the site below `repository/`, and
the links to it are rewritten. A link to a file that does not exist is a warning, which fails a strict build.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS, COPIES = "docs/", "repository/"
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)(#[^)\s]*)?(?=\))")
_EXAMPLE = re.compile(r"^(?:>>> |\.\.\. )[^\n]*(?:\n(?:>>> |\.\.\. |\S)[^\n]*)*", re.MULTILINE)
_log = get_plugin_logger("docs_hooks")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside of docs/ that the pages link to, and those that these link to in turn."""
    waiting = [DOCS + file.src_uri for file in files.documentation_pages()]
    known = set(waiting)
    while waiting:
        name = waiting.pop()
        if not name.endswith(".md"):
            continue
        for target in _targets(name, (ROOT / name).read_text(encoding="utf-8")):
            if target in known or target.startswith(DOCS):
                continue
            known.add(target)
            if not (ROOT / target).is_file():
                _log.warning(f"{name} links to {target}, which does not exist: correct the link")
                continue
            waiting.append(target)
            files.append(File.generated(config, COPIES + target, abs_src_path=os.fspath(ROOT / target)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that leave docs/, and those of copied files, lead to where the site has their targets."""
    uri = page.file.src_uri
    name = uri.removeprefix(COPIES) if uri.startswith(COPIES) else DOCS + uri

    def rewritten(path: str) -> str:
        target = _resolved(name, path)
        copied = target.removeprefix(DOCS) if target.startswith(DOCS) else COPIES + target
        return posixpath.relpath(copied, posixpath.dirname(uri) or ".")

    return _with_links(markdown, rewritten)


def _targets(name: str, markdown: str) -> set[str]:
    """The repository's files that the page `name` links to, by their paths from the root."""
    found: set[str] = set()
    _with_links(markdown, lambda path: found.add(_resolved(name, path)) or path)
    return found


def _resolved(name: str, path: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), path))


def _with_links(markdown: str, change: Callable[[str], str]) -> str:
    """`markdown` with every relative link changed, outside of fenced code."""
    pieces = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        piece if piece.startswith("```") else _LINK.sub(lambda link: change(link[1]) + (link[2] or ""), piece)
        for piece in pieces
    )


class FencedExamples(griffe.Extension):
    """Shows the `>>>` examples of docstrings as code: Markdown would take them for quotations."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Put a fence around each example."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(lambda text: f"```pycon\n{text[0]}\n```", obj.docstring.value)
