"""The table of scale: sections are replaced by name, and a limit of memory is one."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.scale import with_section
from benchmarks.scale_process import COLUMNS, table

_GREEDY = """
import time
from benchmarks.scale_process import Phases
phases = Phases(limit_mib={limit})
held = bytearray(64 << 20)
time.sleep(1)
print("still here")
"""


def test_a_section_takes_the_place_of_the_earlier_one() -> None:
    text = with_section("# Scale\n", "capture", ["one"])
    text = with_section(text, "export", ["two"])
    text = with_section(text, "capture", ["three", "four"])
    assert text == "# Scale\n\n## export\n\ntwo\n\n## capture\n\nthree\nfour\n"


def test_a_table_has_the_columns_that_have_values() -> None:
    lines = table([{"what": "load", "seconds": 1.5}, {"what": "capture", "seconds": 2, "nodes": 7}])
    assert lines[0] == "| what | seconds | nodes |"
    assert lines[2:] == ["| load | 1.5 |  |", "| capture | 2 | 7 |"]
    assert set(COLUMNS) > {"what", "seconds", "nodes"}


def test_a_process_that_takes_more_than_its_limit_ends() -> None:
    done = [
        subprocess.run([sys.executable, "-c", _GREEDY.format(limit=limit)], capture_output=True, text=True, check=False)
        for limit in (32, 1024)
    ]
    assert [run.returncode for run in done] == [1, 0]
    assert "32 are allowed" in done[0].stderr
    assert "still here" in done[1].stdout
