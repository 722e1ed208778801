"""What every test starts from: one thread, fixed seeds, and no network."""

from __future__ import annotations

import random
import socket
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from tests.translations import share_translations

torch.set_num_threads(1)  # reproducible sums, and room for parallel test processes


@pytest.fixture(autouse=True, scope="session")
def one_table_of_translations() -> None:
    """For all exports of a process."""
    share_translations()


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
