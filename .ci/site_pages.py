"""A hook of mkdocs: pages that lie outside docs/ become pages of the site, with their links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Where each page of the checkout is in the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
    "recipes/demo/pictures/README.md": "licences.md",
    "LICENSE": "license.md",
}
LINK = re.compile(r"(\]\()(?!https?:)([^)#\s]+)")
ABOVE = re.compile(r"(\]\()\.\./([^)#\s]+)")


def in_site(target: str, folder: str = "") -> str:
    """Return where a link leads in the site that stands on a page of the checkout's `folder`."""
    path = Path(folder, target).as_posix()
    return PAGES.get(path, path.removeprefix("docs/"))


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the pages outside docs/, each with its links rewritten, and the examples."""
    for source, place in PAGES.items():
        files.append(File.generated(config, place, content=_linked(ROOT / source)))
    for example in (ROOT / "examples").glob("[!R]*.*"):
        name = example.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, content=example.read_bytes()))
    return files


def _linked(page: Path) -> str:
    folder = page.parent.relative_to(ROOT).as_posix()
    return LINK.sub(lambda found: found[1] + in_site(found[2], folder), page.read_text())


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links from docs/ to the checkout's root, such as ../README.md, to their places."""
    if "/" in page.file.src_uri:
        return markdown
    return ABOVE.sub(lambda found: found[1] + in_site(found[2]), markdown)
