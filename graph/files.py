"""Files that survive a power cut."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["sync"]


def sync(path: Path) -> None:
    """Asks the system to put a file, or a directory with its names, on the disk.

    Raises:
        OSError: it cannot be opened, or the disk fails.
    """
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a directory; its renames are journaled
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
