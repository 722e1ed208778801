"""The shape of the repository: who may import whom, how long a file may be, what a public name owes its reader."""

from __future__ import annotations

import ast
import importlib
import inspect
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("fxslim", "graph", "passes", "export")
SOURCES = sorted(f for folder in FOLDERS for f in (ROOT / folder).rglob("*.py"))
FILES = sorted(
    {*SOURCES, *(f for folder in ("tests", "examples", "benchmarks") for f in (ROOT / folder).rglob("*.py"))}
)
# Empty package markers and private modules owe nobody an explanation.
PUBLIC = [f for f in SOURCES if f.stat().st_size and (f.name == "__init__.py" or not f.name.startswith("_"))]
LONGEST_FILE = 400  # lines: beyond that, a file holds more than one idea

# What each layer may not import. The face, fxslim/, may import all of them.
FORBIDDEN = {
    "graph": ("fxslim.passes", "fxslim.export", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "transformers"),
    "passes": ("fxslim.export", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "transformers"),
    "export": ("fxslim.passes", "transformers"),
    "fxslim": ("onnx", "onnx_ir", "onnxscript", "onnxruntime"),
}
LAYERS = ("fxslim.graph", "fxslim.passes", "fxslim.export")


def module_name(file: Path) -> str:
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts if parts[0] == "fxslim" else ["fxslim", *parts])


def imports(source: str, package: str) -> set[str]:
    """Every module that the source imports, anywhere in it, `from a import b` as both a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*anchor, *([base] if base else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def violations(source: str, folder: str, package: str) -> set[str]:
    banned = FORBIDDEN[folder]
    found = {name for name in imports(source, package) if any(name == b or name.startswith(b + ".") for b in banned)}
    if folder != "fxslim":  # a layer may import another layer, but never the face
        found |= {
            name
            for name in imports(source, package)
            if name.startswith("fxslim.") and not any(name == m or name.startswith(m + ".") for m in LAYERS)
        }
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_layer_imports_only_what_lies_below(file: Path) -> None:
    name = module_name(file)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    assert violations(file.read_text(encoding="utf-8"), file.relative_to(ROOT).parts[0], package) == set()


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("graph", "import onnx"),
        ("graph", "from fxslim.passes import base"),
        ("graph", "from ..passes import base"),
        ("passes", "from fxslim import export"),
        ("passes", "def f():\n    import onnxruntime.capi"),
        ("export", "from fxslim.passes.plan import Plan"),
        ("export", "from fxslim import cli"),
        ("fxslim", "from onnx.helper import make_node"),
    ],
)
def test_a_forbidden_import_is_found(folder: str, line: str) -> None:
    assert violations(line, folder, "fxslim" if folder == "fxslim" else f"fxslim.{folder}")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_file_is_short(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST_FILE, f"{lines} lines: which of its ideas wants a file of its own?"


def test_every_package_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    here = {module_name(f) for f in SOURCES if f.name == "__init__.py"}
    assert here == set(settings["tool"]["setuptools"]["packages"])


def test_every_folder_is_covered() -> None:
    assert {f.relative_to(ROOT).parts[0] for f in SOURCES} == set(FOLDERS)


@pytest.mark.parametrize("file", PUBLIC, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_public_module_and_its_names_are_documented(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), "a module says first what it is for"
    module = importlib.import_module(module_name(file))
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)  # fails where __all__ promises what is not there
        if inspect.isclass(value) or inspect.isfunction(value):
            # A dataclass without a docstring is given its signature as one.
            assert value.__doc__ and not value.__doc__.startswith(f"{name}("), f"{name} has no docstring"
