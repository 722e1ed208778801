"""What every test starts from: one thread, fixed seeds, and no network."""

from __future__ import annotations

import copy
import random
import socket
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # reproducible sums, and room for parallel test processes


@pytest.fixture(autouse=True, scope="session")
def one_table_of_translations() -> None:
    """The exporter reads its table of translations to ONNX anew for every file, a second each time; here once for each
    opset, with a copy for every export. Where this version has no such table, each export makes its own as ever."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        return
    read, known = ONNXRegistry.from_torchlib.__func__, {}

    def from_torchlib(cls: type[ONNXRegistry], *args: Any, **kwargs: Any) -> ONNXRegistry:
        key = (args, tuple(sorted(kwargs.items())))
        if key not in known:
            known[key] = read(cls, *args, **kwargs)
        found = copy.copy(known[key])
        found.functions = {target: list(entries) for target, entries in known[key].functions.items()}
        return found

    ONNXRegistry.from_torchlib = classmethod(from_torchlib)


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test draws the same random numbers, in any order of tests."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that opens a connection fails at once, by name, on every machine. Local sockets stay."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != getattr(socket, "AF_UNIX", None):
            refuse(address)
        connect(self, address)

    def refuse(*address: Any, **_: Any) -> NoReturn:
        raise OSError(f"tests may not use the network (asked for {address})")

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
