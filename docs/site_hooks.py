"""For mkdocs: pages made of files that lie outside docs/, and links to those files turned into links to the pages.

In the repository a page links to `../benchmarks/results/loaders.md`, which any viewer can follow; the site has it
as a page of its own. A link that leads outside without a page is an error of the build.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LOG = logging.getLogger("mkdocs.plugins.site_hooks")  # strict builds count what is said below `mkdocs`
LINK = re.compile(r"(?<=\]\()(?!https?://|#|mailto:)([^)#\s]+)(?=[)#])")


def pages() -> dict[str, str]:
    """Files of the repository that are pages, by their path -> the page's path below docs/."""
    found = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.md")):
        found[f"benchmarks/results/{file.name}"] = f"results/{file.name}"
    return found


def on_files(files: Files, config: Any) -> Files:
    for source, page in pages().items():
        text = _relinked((ROOT / source).read_text(encoding="utf-8"), source, page)
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "examples.md", content=_examples()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    source = page.file.src_uri
    return markdown if page.file.generated_by else _relinked(markdown, f"docs/{source}", source)


def _relinked(markdown: str, source: str, page: str) -> str:
    """The text with links relative to the file `source` of the repository made relative to `page` of the site."""

    def link(found: re.Match[str]) -> str:
        target = normpath(join(dirname(source), found[1]))
        known = pages()
        if target in known:
            inside = known[target]
        elif target.startswith("examples/") and (ROOT / target).is_file():
            inside = "examples.md"
        elif target == "README.md":
            inside = "index.md"
        elif target.startswith("docs/") and (ROOT / target).is_file():
            inside = target.removeprefix("docs/")
        else:
            LOG.warning("%s links to %s, of which the site has no page", source, found[1])
            return found[1]
        return relpath(inside, dirname(page) or ".")

    return LINK.sub(link, markdown)


def _examples() -> str:
    """All examples on one page, whole."""
    parts = ["# Examples", "Each runs as it stands, from the root of a checkout."]
    for file in sorted((ROOT / "examples").glob("0*.py")):
        parts += [f"## {file.name}", f"```python\n{file.read_text(encoding='utf-8').rstrip()}\n```"]
    workflow = (ROOT / "examples" / "github-actions" / "slim.yml").read_text(encoding="utf-8").rstrip()
    parts += ["## github-actions/slim.yml", f"```yaml\n{workflow}\n```"]
    return "\n\n".join(parts) + "\n"
