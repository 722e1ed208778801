"""What models larger than memory, and compressing them, take: a section of benchmarks/results/scale.md for each part.

python -m benchmarks.scale capture|export|speed [OPTIONS] [--out FILE]
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from benchmarks import scale_capture, scale_export, scale_speed

PARTS = {"capture": scale_capture, "export": scale_export, "speed": scale_speed}
TITLE = "# Scale\n"


def main() -> None:
    """Runs the part that the command line names, and writes its section in place of the earlier one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="part", required=True)
    for name, part in PARTS.items():
        command = commands.add_parser(name, help=part.__doc__)
        command.add_argument("--out", type=Path, default=Path("benchmarks/results/scale.md"))
        part.add_arguments(command)
    options = parser.parse_args()
    lines = PARTS[options.part].main(options)
    print("\n".join(lines))
    text = options.out.read_text(encoding="utf-8") if options.out.is_file() else TITLE
    options.out.write_text(with_section(text, options.part, lines), encoding="utf-8")


def with_section(text: str, name: str, lines: list[str]) -> str:
    """A document in which the section of that name is `lines`."""
    head, *sections = re.split(r"(?m)^(?=## )", text)
    kept = [section for section in sections if section.splitlines()[0] != f"## {name}"]
    return (
        "".join(part.rstrip() + "\n\n" for part in (head, *kept, "\n".join([f"## {name}", "", *lines]))).rstrip() + "\n"
    )


if __name__ == "__main__":
    main()
