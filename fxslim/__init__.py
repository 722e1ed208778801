"""fxslim: makes a trained model smaller and faster at compile time, and proves what it did."""

from __future__ import annotations

from pathlib import Path

# In a source checkout `graph/`, `passes/` and `export/` lie beside this folder. An installed package has them inside;
# this line lets `python` started in the checkout's root find them too.
if (_checkout := Path(__file__).resolve().parent.parent).joinpath("graph", "axes").is_dir():
    __path__.append(str(_checkout))

__version__ = "0.1.0"
