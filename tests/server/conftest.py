"""A server as a process of its own, the real command as its client, and a fleet that the tests control."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from compiler.target.testing import install_plugin
from server.connection import Connection
from tests.cli.conftest import PLUGIN, Place, make_place

PATIENCE_S = 240.0
"""Longest time to wait for anything: other tests share the machine."""


@dataclass
class Server:
    """A server's process and its data folder.

    Args:
        place: Fleet, cache and plugins.
        options: Further options of `fleetc server`.
    """

    place: Place
    options: tuple[str, ...] = ()
    process: subprocess.Popen[str] | None = None

    @property
    def data(self) -> Path:
        return self.place.root / "data"

    @property
    def client_file(self) -> Path:
        return self.place.root / "client.json"

    def start(self) -> Server:
        port = json.loads(self.client_file.read_text())["server"].rpartition(":")[2] if self.client_file.exists() else 0
        before = self.client_file.stat().st_mtime_ns if self.client_file.exists() else 0
        with (self.place.root / "server.log").open("a") as log:
            self.process = self.place.start(
                "server", "--data", self.data, "--port", str(port), *self.options, stdout=log, stderr=log
            )
        wait_until(lambda: self.is_ready(before) or self.has_ended())
        assert not self.has_ended(), (self.place.root / "server.log").read_text()
        return self

    def is_ready(self, before: int) -> bool:
        return self.client_file.exists() and self.client_file.stat().st_mtime_ns != before

    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    @property
    def url(self) -> str:
        return str(json.loads(self.client_file.read_text())["server"])

    @property
    def key(self) -> str:
        return str(json.loads(self.client_file.read_text())["key"])

    @property
    def connection(self) -> Connection:
        return Connection(self.url, self.key, patience_s=10)

    def job(self, identity: str) -> dict[str, Any]:
        return dict(self.connection.get(f"/v1/jobs/{identity}"))

    def submit(self, *args: str | Path) -> dict[str, Any]:
        outcome = self.place.run("submit", self.place.fleet, "--repeat", "1", "--json", *args)
        assert outcome.code == 0, outcome.err
        return dict(outcome.json)

    def wait_for(self, identity: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The job once it is as it should be."""
        wait_until(lambda: condition(self.job(identity)), lambda: json.dumps(self.job(identity)))
        return self.job(identity)

    def finished(self, identity: str) -> dict[str, Any]:
        return self.wait_for(identity, lambda job: job["finished"] is not None)

    def children(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)


def wait_until(condition: Callable[[], Any], describe: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.2)


def serving(root: Path, site: Path, *options: str) -> Server:
    place = make_place(root, site)
    (root / "tmp").mkdir()
    more = {"FLEETC_CLIENT_FILE": str(root / "client.json"), "TMPDIR": str(root / "tmp")}
    return Server(Place(root, {**place.env, **more}, repeat=1), options)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("site")
    # a tool that hangs does so at the first attempt alone
    install_plugin(
        folder, "moody", PLUGIN.replace("if options.start:", "if options.start and not Path(options.start).exists():")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture
def slow_factor() -> int:
    """How many times more is tried where there is time for it: FLEETC_SLOW=1."""
    return 50 if os.environ.get("FLEETC_SLOW") else 1


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory, site: Path) -> Iterator[Server]:
    """One server for all tests of a worker that leave it as it was."""
    server = serving(tmp_path_factory.mktemp("server"), site, "--rate", "0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEETC_CLIENT_FILE", str(server.client_file))
        server.start()
        yield server
    server.kill(signal.SIGTERM)


@pytest.fixture
def own(tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that a test may kill; it is not started."""
    server = serving(tmp_path / "own", site)
    monkeypatch.setenv("FLEETC_CLIENT_FILE", str(server.client_file))
    yield server
    if server.process is not None and server.process.poll() is None:
        server.kill()
