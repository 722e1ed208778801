"""The site as it is built: no warnings, and nothing in it is loaded from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ELSEWHERE = re.compile(r"(?:https?:)?//")


class Loads(HTMLParser):
    """What a page has its browser load; links that are followed by hand are none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("canonical", "next", "prev"):
            return
        urls = [given.get("src"), given.get("href") if tag == "link" else None, given.get("srcset")]
        self.found += [url for url in urls if url]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    layout = out / "layout" / "fxslim"
    layout.mkdir(parents=True)
    for folder in ("graph", "passes", "export"):
        (layout / folder).symlink_to(ROOT / folder)
    for file in (ROOT / "fxslim").iterdir():
        (layout / file.name).symlink_to(file)
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").replace("[build/layout]", f"[{layout.parent}]")
    config = config.replace("docs_dir: docs", f"docs_dir: {ROOT / 'docs'}").replace("[docs/", f"[{ROOT / 'docs'}/")
    (out / "mkdocs.yml").write_text(config, encoding="utf-8")
    words = ["build", "--strict", "--config-file", str(out / "mkdocs.yml"), "--site-dir", str(out / "site")]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", *words], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return out / "site"


def test_every_page_is_there_with_its_pictures(site: Path) -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").is_file()
    for more in ("examples", "changelog", "contributing", "results/loaders"):
        assert (site / f"{more}.html").is_file()
    assert (site / "concepts.html").read_text(encoding="utf-8").count("pictures/") == 4
    api = (site / "api.html").read_text(encoding="utf-8")
    assert "register_rule" in api and "The slim program" in api, "docstrings are on the page"


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.found and not [url for url in loads.found if ELSEWHERE.match(url)], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import\s*['\"]?)\s*['\"]?https?:", sheet.read_text(encoding="utf-8")), sheet.name
