"""Reads reports: report.json of a result, or by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fxslim.graph.errors import InputError

__all__ = ["FORMAT", "LARGEST", "NAME", "read_report"]

FORMAT = 1
"""The format of report.json that this version writes and reads. Within one, keys are added and never change."""

NAME = "report.json"
LARGEST = 64 << 20  # bytes: reports are bounded, and what is larger is none

# What the first reports of this format did not say: what it was then.
_LATER: dict[str, Any] = {"variants": [], "loader": None, "curves": None}
_NEEDED = (
    "verdict", "failures", "model", "command", "costs", "quality", "groups", "restoration", "proof", "parity",
    "latency", "fixed", "unknown_operators", "plan", "data", "onnx", "notes", "seconds", "versions",
)  # fmt: skip


def read_report(path: str | Path) -> dict[str, Any]:
    """The report in a file, or in the result that is a directory.

    Raises:
        InputError: there is none, it is none, or it has a format that this version does not know.
    """
    file = Path(path).expanduser()
    file = file / NAME if file.is_dir() else file
    try:
        if file.stat().st_size > LARGEST:
            raise InputError(f"{LARGEST >> 20} MiB is more than a report can have", at=str(file))
        report: Any = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"there is no report here: {error.strerror or error}", at=str(file),
            remedy="give a result of `fxslim slim`, or its report.json",
        ) from error  # fmt: skip
    except (ValueError, RecursionError) as error:
        raise InputError("the report is no JSON", at=str(file), remedy="give what `fxslim slim` wrote") from error
    if not isinstance(report, dict) or "format" not in report:
        raise InputError(f"this is no report of fxslim: it has no format (this version reads {FORMAT})", at=str(file))
    if report["format"] != FORMAT or isinstance(report["format"], bool):
        raise InputError(
            f"the report has format {report['format']!r}, this version reads {FORMAT}", at=str(file),
            remedy="use the version of fxslim that wrote it" + _version(report),
        )  # fmt: skip
    if missing := [key for key in _NEEDED if key not in report]:
        raise InputError(f"this is no whole report of fxslim: it has no {missing[0]!r}", at=str(file))
    return completed(report)


def completed(report: dict[str, Any]) -> dict[str, Any]:
    """The report with the keys that came later within its format."""
    used = report["parity"].get("provider", "cpu") if isinstance(report["parity"], dict) else "cpu"
    provider = {"asked": used, "used": used, "available": [used], "tf32": None}
    return {**_LATER, "provider": provider, **report}


def _version(report: dict[str, Any]) -> str:
    versions = report.get("versions")
    found = versions.get("fxslim") if isinstance(versions, dict) else None
    return f", {str(found)[:20]}" if found else ""
