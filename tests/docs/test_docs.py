"""The documentation: links lead somewhere, pictures are those of their script, the quick start runs as printed."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import typer

from fxslim.cli import app
from fxslim.graph import errors

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(#[^)\s]+)?\)")
FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    missing = [link for link, _ in LINK.findall(text) if link and not (page.parent / link).exists()]
    assert not missing


def test_pictures_are_what_their_script_draws_and_say_what_they_show() -> None:
    drawn = runpy.run_path(str(DOCS / "pictures" / "draw.py"))["PICTURES"]
    assert {file.name for file in (DOCS / "pictures").glob("*.svg")} == set(drawn)
    for file, draw in drawn.items():
        text = (DOCS / "pictures" / file).read_text(encoding="utf-8")
        assert text == draw(), "run python docs/pictures/draw.py"
        root = ET.fromstring(text)
        said = [root.findtext(f"{{http://www.w3.org/2000/svg}}{tag}") for tag in ("title", "desc")]
        assert all(said) and "prefers-color-scheme:dark" in text


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_flag_of_a_printed_command_is_one_that_it_has(page: Path) -> None:
    root: Any = typer.main.get_command(app)
    for line in re.findall(r"^(?: {4}|\$ )(?:\$ )?(fxslim [a-z]+ .*)$", page.read_text(encoding="utf-8"), re.M):
        words = line.split()
        assert words[1] in root.commands, line
        known = {option for parameter in root.commands[words[1]].params for option in parameter.opts} | {"--help"}
        assert {w.split("=")[0] for w in words if re.match(r"--?[a-z]", w)} <= known, line


def test_every_error_class_is_listed() -> None:
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    classes = {n for n in errors.__all__ if n.endswith("Error")}
    assert {c for c in classes if f"`{c}`" in text or f"fxslim.{c}" in text} == classes


def blocks(page: Path, language: str) -> list[str]:
    return [block for kind, block in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands(block: str) -> list[str]:
    return [line[2:] for line in block.splitlines() if line.startswith("$ ")]


@pytest.mark.slow
def test_the_quick_start_runs_as_it_is_printed(tmp_path: Path) -> None:
    """In order, each command and each block of Python in a process of its own, as a new user would."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100"}
    ran = 0
    for language, block in FENCE.findall((DOCS / "index.md").read_text(encoding="utf-8")):
        steps = [["bash", "-c", line] for line in commands(block)] if language == "console" else []
        steps += [[sys.executable, "-c", block]] if language == "python" else []
        for step in steps:
            done = subprocess.run(step, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{step[-1]}\n{done.stdout}{done.stderr}"
            ran += 1
    assert ran >= 10


def test_the_commands_of_the_readme_are_those_of_the_quick_start() -> None:
    """Its Python is run in tests/examples."""
    printed = {line for block in blocks(ROOT / "README.md", "console") for line in commands(block)}
    assert printed and printed <= {line for block in blocks(DOCS / "index.md", "console") for line in commands(block)}
