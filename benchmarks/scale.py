"""What models larger than memory take: seconds and memory, a row for each measurement in a table.

python -m benchmarks.scale capture|export [OPTIONS] [--out benchmarks/results/scale.csv]

Every measurement runs in a process of its own, whose memory can be limited (RLIMIT_DATA: what is private to it and not
a file).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import scale_capture, scale_export

PARTS = (scale_capture, scale_export)


def main() -> None:
    """Runs the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for part in PARTS:
        command = part.add_to(commands)
        command.add_argument("--out", type=Path, default=Path("benchmarks/results/scale.csv"))
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
