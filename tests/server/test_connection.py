"""How long a call waits for a server that does not answer."""

from __future__ import annotations

import threading
import time

import pytest
from fault_server import free_port

from server.connection import Connection, Unreachable


def test_a_worker_that_is_stopped_waits_no_longer_for_its_server() -> None:
    stopping = threading.Event()
    connection = Connection(f"http://127.0.0.1:{free_port()}", "token", patience_s=60, stopping=stopping)
    threading.Timer(0.5, stopping.set).start()
    began = time.monotonic()
    with pytest.raises(Unreachable):
        connection.get("/v1/attempts/0")
    assert 0.4 < time.monotonic() - began < 20
