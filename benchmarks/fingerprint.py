"""Which code measured a row."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["fingerprint"]


def fingerprint(*folders: str) -> str:
    """A hash of the code in `folders` of the repository."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for folder in folders:
        for file in sorted((root / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:10]
