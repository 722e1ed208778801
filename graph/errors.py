"""The errors of fxslim: one class per stage, each message says what, where, which rule and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import fx

__all__ = [
    "AnalysisError",
    "CaptureError",
    "CheckError",
    "ExportError",
    "FxslimError",
    "InputError",
    "LocalError",
    "PlanError",
    "RuleError",
    "VerifyError",
    "model_line",
    "where",
]


class FxslimError(Exception):
    """Base of all errors that fxslim raises on purpose. `exit_code` is what the command line returns for it."""

    exit_code = 2

    def __init__(self, what: str, *, at: str | None = None, rule: str | None = None, remedy: str | None = None) -> None:
        self.what, self.at, self.rule, self.remedy = what, at, rule, remedy
        lines = [what]
        if at:
            lines.append(f"  where: {at}")
        if rule:
            lines.append(f"  rule:  {rule}")
        if remedy:
            lines.append(f"  next:  {remedy}")
        super().__init__("\n".join(lines))


class InputError(FxslimError):
    """What the user handed in cannot be used: a file, a weight, a calibration set, an option."""


class LocalError(InputError):
    """What may befall one process of several alone: its part of the data, its disk, another process that ended. All
    other errors befall all of them, as they do the same."""


class CaptureError(FxslimError):
    """The model cannot be captured as a graph."""


class RuleError(FxslimError):
    """A dimension rule is malformed, registered twice, or does not fit the node it is asked about."""


class AnalysisError(FxslimError):
    """The axes of a program cannot be derived, or a question about them names something unknown."""


class PlanError(FxslimError):
    """A plan cannot be made, read, or applied to this program."""


class VerifyError(FxslimError):
    """A rewritten program violates an invariant. This is a defect of a pass, not of the input."""

    exit_code = 1


class ExportError(FxslimError):
    """The program cannot be exported, or the exported file is not what was asked for."""


class CheckError(FxslimError):
    """A check ran and failed, or could not run."""

    exit_code = 1


def model_line(node: fx.Node) -> str | None:
    """The innermost line of the model's source that made `node`: `file:line in function`, or None if unknown."""
    trace = node.stack_trace or node.meta.get("stack_trace")
    if not trace:
        return None
    for line in reversed(trace.strip().splitlines()):
        text = line.strip()
        if text.startswith("File ") and "/torch/" not in text:  # the model's own line, not that of torch.nn
            path, _, rest = text.removeprefix("File ").partition(", line ")
            number, _, function = rest.partition(", ")
            return f"{_short(path.strip(chr(34)))}:{number} {function}".rstrip()
    return None


def _short(path: str) -> str:
    """A source file without the machine's folders: from the package on, or its last two parts."""
    _, found, inside = path.rpartition("site-packages/")
    return inside if found else "/".join(path.split("/")[-2:])


def where(node: fx.Node) -> str:
    """`node name (operator), model line` for messages about a node."""
    line = model_line(node)
    return f"{node.name} ({node.target})" + (f", {line}" if line else "")
