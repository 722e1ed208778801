"""Two models that misbehave on purpose: the sweep's own tests run them."""

from __future__ import annotations

import os
import time

from benchmarks.zoo.case import Build, Case

__all__ = ["cases"]


def cases() -> dict[str, Build]:
    """One that never ends and one that takes its process down."""
    return {"sleeps": _sleeps, "dies": _dies}


def _sleeps() -> Case:
    time.sleep(3600)
    raise AssertionError("unreachable: the sweep kills this process")


def _dies() -> Case:
    os.abort()
