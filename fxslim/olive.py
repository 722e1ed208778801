"""fxslim in Olive: the pass `FxslimSlim`, and the package config that tells Olive of it.

    python -m fxslim.olive package_config.json     # Olive's own passes and FxslimSlim
    olive run --config workflow.json --package-config package_config.json

Importing this module needs nothing; asking it for the pass needs olive-ai.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxslim.graph.errors import InputError

if TYPE_CHECKING:
    from fxslim._olive_pass import FxslimSlim as FxslimSlim

__all__ = ["PASS", "main", "package_config"]

PASS: dict[str, Any] = {
    "module_path": "fxslim.olive.FxslimSlim",
    "supported_providers": ["*"],
    "supported_accelerators": ["*"],
    "supported_precisions": ["*"],
    "supported_algorithms": [],
    "supported_quantization_encodings": [],
    "module_dependencies": ["fxslim"],
}
"""The entry of FxslimSlim in a package config."""


def package_config() -> dict[str, Any]:
    """Olive's own package config with FxslimSlim added: one that is handed to `--package-config` replaces the former.

    Raises:
        InputError: Olive is not installed.
    """
    try:
        from olive.package_config import OlivePackageConfig
    except ImportError as error:
        raise _missing(error) from error
    import json

    own: dict[str, Any] = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))
    own["passes"] = {**own["passes"], "FxslimSlim": PASS}
    return own


def main(words: list[str]) -> int:
    """Writes the package config to the file that the only word names; the exit code."""
    from fxslim.outputs import write_json_atomic

    if len(words) != 1:
        print("usage: python -m fxslim.olive FILE", file=sys.stderr)  # noqa: T201
        return 2
    try:
        write_json_atomic(Path(words[0]), package_config())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


def _missing(error: ImportError) -> InputError:
    return InputError(f"Olive cannot be imported: {error}", remedy="pip install olive-ai")


def __getattr__(name: str) -> Any:
    if name != "FxslimSlim":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from fxslim._olive_pass import FxslimSlim
    except ImportError as error:
        raise _missing(error) from error
    return FxslimSlim


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
