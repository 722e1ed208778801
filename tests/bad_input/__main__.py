"""What is said to every kind of bad input, as a table.

python -m tests.bad_input [--out benchmarks/results/bad_input.md]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from typer.testing import CliRunner

from fxslim.cli import app
from tests.bad_input.cases import CASES
from tests.bad_input.place import whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/bad_input.md"))
    options = parser.parse_args()
    os.environ["COLUMNS"] = "200"
    rows, wrong, traces = [], 0, 0
    with tempfile.TemporaryDirectory(prefix="bad-") as scratch:
        root = Path(scratch)
        good = whole(root / "good")
        for number, case in enumerate(CASES):
            place = good.copy(root / str(number))
            found = CliRunner().invoke(app, case.make(place))
            ok = found.exit_code == case.exit_code and case.says in found.output and "Traceback" not in found.output
            wrong += not ok
            traces += "Traceback" in found.output
            said = _said(found.output).replace(str(place.root), "DIR")
            rows.append(f"| {case.area} | {case.name} | {found.exit_code}{'' if ok else ' WRONG'} | {said} |")
    head = [
        "# Bad input", "",
        f"`make bad-input`: {len(rows)} cases, {wrong} of them answered otherwise than they should be, {traces} with a",
        "traceback. What is said is cut to its first line; `tests/bad_input` asserts it.", "",
        "| area | mistake | exit code | what is said |", "| --- | --- | ---: | --- |",
    ]  # fmt: skip
    options.out.write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")
    return int(wrong > 0)


def _said(output: str) -> str:
    """The first line that says what is wrong, made fit for a table."""
    lines = [line.strip(" │") for line in output.splitlines() if line.strip(" │╭╮╰╯─")]
    first = next((line for line in lines if not line.startswith(("Usage", "Try ", "error: the recipe cannot"))), "")
    return first.removeprefix("error: ").replace("|", "\\|")[:160]


if __name__ == "__main__":
    sys.exit(main())
